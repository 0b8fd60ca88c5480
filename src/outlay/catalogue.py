"""The table of everything that has a name: methods, verifiers, tasks. It imports none of them."""

from __future__ import annotations

import importlib
import typing
from dataclasses import dataclass

from outlay.errors import DependencyError


@dataclass(frozen=True)
class Entry:
    """One method or task.

    Args:
        slug: its name: a slug of the table of systems, slug/part, or a baseline's name.
        target: "module:Class".
        room: the package of outlay that it lives in.
        title: the system's own name.
        summary: one line.
        paper: arXiv number, "" for baselines.
        proof: True where `outlay prove <system>` exists.
        part_of: the system of the table of systems; "" where the slug (up to a slash) is its name.
    """

    slug: str
    target: str
    room: str
    title: str
    summary: str
    paper: str = ""
    proof: bool = False
    part_of: str = ""

    @property
    def system(self) -> str:
        """Name of the published system, or the baseline's own."""
        return self.part_of or self.slug.split("/")[0]

    def load(self) -> type:
        """The class, imported now.

        Raises:
            DependencyError: if it needs an optional dependency that is missing.
        """
        module, _, name = self.target.partition(":")
        try:
            return typing.cast(type, getattr(importlib.import_module(module), name))
        except ImportError as error:
            raise DependencyError(
                f"{self.slug} needs a package that is not installed ({error}); "
                "pip install 'outlay[all]', or run 'outlay doctor'"
            ) from error


_P = "outlay.prompt"
_REASON = "outlay.reason"
_RL = "outlay.rl"
_VISION = "outlay.vision"
METHODS: tuple[Entry, ...] = (
    Entry(
        "longcodezip",
        f"{_P}.longcodezip:LongCodeZip",
        "prompt",
        "LongCodeZip",
        "compress long code context in two stages under a token budget",
        "2510.00446",
        proof=True,
    ),
    Entry(
        "dynaicl",
        f"{_P}.dynaicl.method:DynaICL",
        "prompt",
        "DynaICL",
        "give every input as many demonstrations as it needs, under one token budget",
        "2305.11170",
        proof=True,
    ),
    Entry(
        "m1",
        "outlay.decode.thinking_budget:ThinkingBudget",
        "decode",
        "m1 budget forcing",
        "force minimum and maximum thinking tokens, always end with an answer",
        "2504.00869",
        proof=True,
    ),
    Entry(
        "head",
        f"{_P}.truncation:HeadTruncation",
        "prompt",
        "Head truncation",
        "keep the beginning of the context",
    ),
    Entry(
        "tail",
        f"{_P}.truncation:TailTruncation",
        "prompt",
        "Tail truncation",
        "keep the end of the context",
    ),
    Entry(
        "random-functions",
        f"{_P}.truncation:RandomFunctions",
        "prompt",
        "Random functions",
        "keep whole functions at random",
    ),
    Entry(
        "random-lines",
        f"{_P}.truncation:RandomLines",
        "prompt",
        "Random lines",
        "keep lines at random",
    ),
    Entry(
        "bm25",
        f"{_P}.retrieval:BM25",
        "prompt",
        "BM25 retrieval",
        "keep the chunks that share words with the question",
    ),
    Entry(
        "embedding",
        f"{_P}.retrieval:EmbeddingRetrieval",
        "prompt",
        "Embedding retrieval",
        "keep the chunks whose MiniLM embedding is closest to the question's",
    ),
    Entry(
        "uniform-demonstrations",
        f"{_P}.dynaicl.contexts:UniformDemonstrations",
        "prompt",
        "Uniform demonstrations",
        "keep as many whole demonstrations as fit, the same number for every input",
    ),
    Entry(
        "plain",
        "outlay.decode.plain:PlainDecoder",
        "decode",
        "Plain decoding",
        "generate until the budget cuts it off",
    ),
    Entry(
        "no-thinking",
        "outlay.decode.plain:NoThinking",
        "decode",
        "No thinking",
        "answer at once, without thinking",
    ),
    Entry(
        "plan-and-budget",
        f"{_REASON}.plan_and_budget.method:PlanAndBudget",
        "reason",
        "Plan-and-Budget",
        "plan sub-questions, then share one token budget among them",
        "2505.16122",
        proof=True,
    ),
    Entry(
        "a-star-decoding",
        f"{_REASON}.astar:AStarDecoding",
        "reason",
        "A*-decoding",
        "always extend the partial solution that a step verifier finds most promising",
        "2505.13672",
        proof=True,
    ),
    Entry(
        "latent-trajectory",
        f"{_REASON}.latent_trajectory.sequential:LTSequential",
        "reason",
        "Latent-Trajectory sampling",
        "draw traces until the movement of hidden states says that one is right",
        "2510.10494",
        proof=True,
    ),
    Entry(
        "latent-trajectory/early",
        f"{_REASON}.latent_trajectory.early:LTEarly",
        "reason",
        "Latent-Trajectory early selection",
        "start several traces and finish only the one whose hidden states look best",
        "2510.10494",
        proof=True,
    ),
    Entry(
        "arm",
        f"{_REASON}.adaptive.method:Adaptive",
        "reason",
        "ARM",
        "answer in cheap formats first; think long where they disagree",
        "2505.20258",
        proof=True,
    ),
    Entry(
        "greedy",
        f"{_REASON}.voting:Greedy",
        "reason",
        "Greedy",
        "one completion at temperature 0",
    ),
    Entry(
        "self-consistency",
        f"{_REASON}.voting:SelfConsistency",
        "reason",
        "Self-consistency",
        "sample n answers and take the most frequent, stopping once it is decided",
    ),
    Entry(
        "best-of-n",
        f"{_REASON}.voting:BestOfN",
        "reason",
        "Best of N",
        "sample n answers and take the one that a verifier likes best",
    ),
    Entry(
        "shortest",
        f"{_REASON}.voting:Shortest",
        "reason",
        "Shortest of N",
        "sample n answers and take the shortest one's",
    ),
    Entry(
        "beam",
        f"{_REASON}.search:BeamSearch",
        "reason",
        "Beam search over steps",
        "keep the best partial solutions by a verifier, step after step",
    ),
    Entry(
        "particle-filter",
        f"{_REASON}.search:ParticleFilter",
        "reason",
        "Particle filter",
        "resample partial solutions by a verifier's scores, step after step",
    ),
    Entry(
        "rsd",
        "outlay.decode.rsd.method:RSD",
        "decode",
        "Recursive speculative decoding",
        "draft a tree without replacement, verify it in one pass, keep the model's distribution",
        "2402.14160",
        proof=True,
    ),
    Entry(
        "speculative",
        "outlay.decode.speculative:Speculative",
        "decode",
        "Speculative decoding",
        "verify a chain of draft tokens in one pass",
    ),
    Entry(
        "multi-draft",
        "outlay.decode.speculative:MultiDraft",
        "decode",
        "Multi-draft speculative decoding",
        "verify several independent draft chains in one pass",
    ),
    Entry(
        "assisted",
        "outlay.decode.speculative:Assisted",
        "decode",
        "Assisted generation",
        "transformers' own speculative decoding",
    ),
    Entry(
        "prompt-lookup",
        "outlay.decode.speculative:PromptLookup",
        "decode",
        "Prompt lookup",
        "transformers' drafts copied from the prompt",
    ),
    Entry(
        "swireasoning",
        "outlay.decode.swireasoning.method:SwiReasoning",
        "decode",
        "SwiReasoning",
        "switch between latent and explicit thinking by entropy",
        "2510.05069",
        proof=True,
    ),
    Entry(
        "soft-thinking",
        "outlay.decode.swireasoning.method:SoftThinking",
        "decode",
        "Soft thinking",
        "think in weighted mean embeddings, never switch",
    ),
    Entry(
        "random-switching",
        "outlay.decode.swireasoning.method:RandomSwitching",
        "decode",
        "Random switching",
        "switch between latent and explicit thinking at random",
    ),
    Entry(
        "lacache",
        "outlay.cache.lacache:LaCache",
        "cache",
        "LaCache",
        "keep other old rows in every layer, compact again and again",
        "2507.14204",
        proof=True,
    ),
    Entry(
        "full-cache",
        "outlay.cache.loop:FullCache",
        "cache",
        "Full cache",
        "keep every row of every layer",
    ),
    Entry(
        "streaming-llm",
        "outlay.cache.baselines:StreamingLLM",
        "cache",
        "StreamingLLM",
        "keep the first rows and the most recent ones",
    ),
    Entry(
        "sliding-window",
        "outlay.cache.baselines:SlidingWindow",
        "cache",
        "Sliding window",
        "keep the most recent rows",
    ),
    Entry(
        "random-retention",
        "outlay.cache.baselines:RandomRetention",
        "cache",
        "Random retention",
        "keep old rows at random, in every layer its own or shared",
    ),
    Entry(
        "uniform-stride",
        "outlay.cache.baselines:UniformStride",
        "cache",
        "Uniform stride",
        "keep old rows at even distances",
    ),
    Entry(
        "hired",
        f"{_VISION}.hired.method:HiRED",
        "vision",
        "HiRED",
        "split a budget over an image's tiles by the tower's attention, keep the best of each",
        "2408.10945",
        proof=True,
    ),
    Entry(
        "covipal",
        f"{_VISION}.covipal.method:CoViPAL",
        "vision",
        "CoViPAL",
        "a small trained module prunes visual tokens in view of the question",
        "2508.17243",
        proof=True,
    ),
    Entry(
        "g-search",
        f"{_VISION}.gsearch.method:GSearch",
        "vision",
        "G-Search",
        "search how many visual tokens each decoder layer needs",
        "2412.00556",
        proof=True,
    ),
    Entry(
        "zero-tprune",
        f"{_VISION}.zero_tprune.method:ZeroTPrune",
        "vision",
        "Zero-TPrune",
        "prune a trained tower's tokens by PageRank on its attention, and drop near copies",
        "2305.17328",
        proof=True,
    ),
    Entry(
        "quota",
        f"{_VISION}.quota.method:QuoTA",
        "vision",
        "QuoTA",
        "give each frame of a video as many tokens as the question needs of it",
        "2503.08689",
        proof=True,
    ),
    Entry(
        "tokenflex",
        f"{_VISION}.tokenflex.method:TokenFlex",
        "vision",
        "TokenFLEX",
        "one model for any number of visual tokens, chosen at inference",
        "2504.03154",
        proof=True,
    ),
    Entry(
        "t2t-vit",
        f"{_VISION}.t2t_vit.method:T2TViT",
        "vision",
        "T2T-ViT",
        "a vision transformer whose tokens know their neighbourhood, at the price of patches",
        "2101.11986",
        proof=True,
    ),
    Entry(
        "random-visual",
        f"{_VISION}.baselines:RandomTokens",
        "vision",
        "Random tokens",
        "keep visual tokens at random",
    ),
    Entry(
        "uniform-visual",
        f"{_VISION}.baselines:UniformTokens",
        "vision",
        "Uniform tokens",
        "keep visual tokens on an even grid",
    ),
    Entry(
        "pooled-visual",
        f"{_VISION}.baselines:PooledTokens",
        "vision",
        "Pooling",
        "average square fields of an image's features",
    ),
    Entry(
        "merged-visual",
        f"{_VISION}.baselines:MergedTokens",
        "vision",
        "Token merging",
        "merge the features that are most alike, as ToMe does, before the decoder",
    ),
    Entry(
        "class-top",
        f"{_VISION}.baselines:ClassTopTokens",
        "vision",
        "Class-token ranking",
        "keep the patches that the tower's class token looks at most",
    ),
    Entry(
        "fastv",
        f"{_VISION}.in_decoder:FastV",
        "vision",
        "FastV",
        "drop once inside the decoder, by the last token's attention",
    ),
    Entry(
        "pyramid-drop",
        f"{_VISION}.in_decoder:PyramidDrop",
        "vision",
        "PyramidDrop",
        "drop a share of what is left at each quarter of the decoder's depth",
    ),
    Entry(
        "blind",
        f"{_VISION}.baselines:NoTokens",
        "vision",
        "Blind",
        "keep no visual token: what the question alone gives away",
    ),
    Entry(
        "kv-prediction",
        "outlay.cache.kv_prediction.method:KVPrediction",
        "cache",
        "KV Prediction",
        "a small model predicts the large model's cache of the prompt",
        "2410.08391",
        proof=True,
    ),
    Entry(
        "recent-tokens",
        "outlay.cache.kv_prediction.baselines:RecentTokens",
        "cache",
        "Recent tokens",
        "read only the end of the prompt",
    ),
    Entry(
        "random-tokens",
        "outlay.cache.kv_prediction.baselines:RandomTokens",
        "cache",
        "Random tokens",
        "read prompt tokens at random",
    ),
    Entry(
        "layered-prefill",
        "outlay.schedule.layered:LayeredPrefill",
        "schedule",
        "Layered prefill",
        "one group of layers prefills in every step while all requests decode",
        "2510.08055",
        proof=True,
    ),
    Entry(
        "chunked-prefill",
        "outlay.schedule.chunked:ChunkedPrefill",
        "schedule",
        "Chunked prefill",
        "a chunk of tokens prefills in every step while all requests decode",
    ),
    Entry(
        "orca",
        "outlay.schedule.orca:Orca",
        "schedule",
        "Iteration-level scheduling",
        "whole prompts prefill first, then all requests decode",
    ),
    Entry(
        "coin",
        "outlay.audit.coin:CoIn",
        "audit",
        "CoIn",
        "audit the count and the content of hidden reasoning tokens without seeing the text",
        "2505.13778",
        proof=True,
    ),
    Entry(
        "grpo",
        f"{_RL}.base:Plain",
        "rl",
        "GRPO (TRL)",
        "TRL's GRPO with the rewards given: the baseline of all trainers here",
    ),
    Entry(
        "curriculum-grpo",
        f"{_RL}.curriculum:CurriculumGRPO",
        "rl",
        "Curriculum GRPO",
        "a token budget that shrinks during training: find solutions, then write them short",
        "2508.08940",
        proof=True,
    ),
    Entry(
        "hbpo",
        f"{_RL}.hbpo:HBPO",
        "rl",
        "HBPO",
        "several token budgets inside every group of rollouts",
        "2507.15844",
        proof=True,
    ),
    Entry(
        "anytime-brpo",
        f"{_RL}.anytime.method:AnytimeBRPO",
        "rl",
        "AnytimeReasoner, BRPO",
        "reward every truncation of the thinking, with budget-relative baselines",
        "2505.13438",
        proof=True,
    ),
    Entry(
        "ada-grpo",
        f"{_RL}.ada_grpo:AdaGRPO",
        "rl",
        "Ada-GRPO",
        "scale rewards by how rare their answer's format is, and let that decay",
        "2505.20258",
        proof=True,
    ),
)

VERIFIERS: tuple[Entry, ...] = (
    Entry(
        "think-prm",
        f"{_REASON}.think_prm.verifier:ThinkPRM",
        "reason",
        "ThinkPRM",
        "writes a critique of every step, then judges the solution",
        "2504.16828",
        proof=True,
    ),
    Entry(
        "chain-oracle",
        "outlay.testbeds.reasoner.oracle:ChainOracle",
        "testbeds",
        "Chain oracle",
        "exact step labels of the reasoner's chains, with noise of a chosen AUC",
    ),
    Entry(
        "chain-prm",
        "outlay.testbeds.reasoner.prm:ChainPRM",
        "testbeds",
        "Chain process reward model",
        "a small learned verifier of the reasoner's chains",
    ),
    Entry(
        "self",
        f"{_REASON}.verifiers:SelfEvaluation",
        "reason",
        "Self-evaluation",
        "asks a model whether the steps so far are right",
    ),
)

TASKS: tuple[Entry, ...] = (
    Entry(
        "seer",
        "outlay.evals.seer:SeerScenes",
        "evals",
        "Seer scenes",
        "questions about drawn scenes of coloured digits and garments, for the model seer",
    ),
    Entry(
        "code-completion",
        "outlay.evals.code:CodeCompletion",
        "evals",
        "Code completion",
        "complete a function whose needed definition lies elsewhere in a long module",
    ),
    Entry(
        "code-qa",
        "outlay.evals.code_qa:CodeQA",
        "evals",
        "Code questions",
        "questions about functions of a long module, answered from its source",
    ),
    Entry(
        "retrieval-qa",
        "outlay.evals.retrieval_qa:RetrievalQA",
        "evals",
        "Retrieval questions",
        "questions whose answer lies inside long documents",
    ),
    Entry(
        "reasoning-gym",
        "outlay.evals.reasoning:ReasoningGym",
        "evals",
        "Reasoning gym",
        "arithmetic, logic and puzzles made by rule, with verifiers",
    ),
    Entry(
        "puzzles",
        "outlay.evals.puzzles.tasks:Puzzles",
        "evals",
        "The Illusion of Thinking",
        "puzzles of growing complexity, checked move by move: lists, programs, moves, episodes",
        "2506.06941",
        proof=True,
    ),
    Entry(
        "robots",
        "outlay.evals.robots.tasks:Robots",
        "evals",
        "Multi-robot planning",
        "multi-robot worlds in which agents agree on joint plans",
        "2309.15943",
        proof=True,
        part_of="multi-robot",
    ),
    Entry(
        "basir",
        "outlay.evals.basir.tasks:Basir",
        "evals",
        "BASIR",
        "tag budget-speech excerpts with economic sectors, and rank the sectors honestly",
        "2504.13189",
        proof=True,
    ),
    Entry(
        "factuality",
        "outlay.evals.factuality.tasks:Factuality",
        "evals",
        "Factuality (KG-traces)",
        "multi-hop questions over a knowledge graph, closed book or with the paths",
        "2505.11140",
        proof=True,
        part_of="kg-traces",
    ),
    Entry(
        "icl",
        "outlay.testbeds.icl.tasks:InContext",
        "testbeds",
        "In-context rules",
        "questions whose rule is hidden in their demonstrations",
    ),
    Entry(
        "chainarith",
        "outlay.testbeds.reasoner.tasks:ChainArith",
        "testbeds",
        "ChainArith",
        "chains of one-digit operations, for the reasoner testbed",
    ),
    Entry(
        "joinedarith",
        "outlay.testbeds.reasoner.joined:JoinedArith",
        "testbeds",
        "Joined chains",
        "sums of chains of unequal length, for sharing a budget over sub-problems",
    ),
    Entry(
        "chainrecall",
        "outlay.testbeds.reasoner.tasks:ChainRecall",
        "testbeds",
        "ChainRecall",
        "one- and two-hop questions over synthetic facts, for the reasoner testbed",
    ),
    Entry(
        "hiddenleaf",
        "outlay.testbeds.searcher.tasks:HiddenLeaf",
        "testbeds",
        "Hidden leaves",
        "which leaf hangs below a root: a search that can only guess at every fork",
    ),
)
