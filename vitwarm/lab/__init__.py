"""The laboratory of tiny decoders: what a warm-up on a rule is worth on tasks with an answer (arXiv 2505.22308).

A plan names tasks, warm-ups, parts of the warmed weights and settings. A cell is one of each and a seed. A warm-up is
trained once a seed, alone, and all cells that start from it read its folder.

    plan -> grid of cells -> vitwarm.budget.launch -> run folders -> outcomes -> report
"""
