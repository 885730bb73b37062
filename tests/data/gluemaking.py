"""GLUE's files in small, each task in its own layout."""

# A line with its columns as the task's files have them, around label L and sentences A, B.
LAYOUT = {
    "cola": (None, "gj04\tL\t*\tA"),
    "sst2": ("sentence\tlabel", "A\tL"),
    "mrpc": ("\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String", "L\t11\t12\tA\tB"),
    "qqp": ("id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", "7\t1\t2\tA\tB\tL"),
    "mnli": (
        "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\t"
        "sentence2_parse\tsentence1\tsentence2\tlabel1\tgold_label",
        "0\t31193\t31193n\tgovernment\t( x )\t( x )\t(ROOT x)\t(ROOT x)\tA\tB\tneutral\tL",
    ),
    "qnli": ("index\tquestion\tsentence\tlabel", "0\tA\tB\tL"),
    "rte": ("index\tsentence1\tsentence2\tlabel", "0\tA\tB\tL"),
    "wnli": ("index\tsentence1\tsentence2\tlabel", "0\tA\tB\tL"),
}  # fmt: skip


def write(path, task, rows, newline="\n"):
    """Rows (label as in the file, first, second) in the task's own layout."""
    header, line = LAYOUT[task]
    lines = [] if header is None else [header]
    for label, first, second in rows:
        line_of = {"L": label, "A": first, "B": second}
        lines.append("\t".join(line_of.get(c, c) for c in line.split("\t")))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(f"{text}{newline}" for text in lines).encode())
