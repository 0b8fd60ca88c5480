"""The dashboard at `/`: server-rendered pages and a little JavaScript that keeps them current.

`routes` puts it together. `sessions` knows who is there, `reading` and `spending` read the books
beside the hot path, `views` turn them into what a page shows, `actions` change keys and budgets.
"""
