"""BASIR: tag policy-speech excerpts with economic sectors, and rank the sectors by market reaction.

"BASIR: Budget-Assisted Sectoral Impact Ranking" (arXiv 2504.13189). The paper's data set is
CC-BY-NC-SA and is not shipped; texts, prices and labels are the user's own, or the small synthetic
sample of `sample.json`. Everything here is research, not investment advice.

- `data`, `speech`, `prices`: rows, segmentation of a speech, returns of sectors.
- `labels`: 81 sectors, or the user's own label file.
- `tfidf`, `embedding`, `finetune`, `llm`, `cascade`: routes from a text to its sectors.
- `threshold`, `f1`: decisions and scikit-learn's F1.
- `relevance`, `scorers`, `text_scorers`, `llm_scorers`: ranking; its metrics are
  `outlay.evals.ranking`.
- `train`: training and evaluation of both tasks, saving, the model card.
"""
