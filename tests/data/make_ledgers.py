"""Writes the two example ledgers beside this file: `python tests/data/make_ledgers.py`. Invented, the same every time.

five_columns.tsv: 126 rows as hand-run sessions write them: a `baseline` commit, 23 keeps, crashes scored 0.000000.
odd_columns.tsv: 13 columns of another tool: other names and order, megabytes, other words for statuses, NA cells, CRLF.
"""

from __future__ import annotations

import random
from pathlib import Path

HERE = Path(__file__).parent
IDEAS = (
    *("halve TOTAL_BATCH_SIZE", "raise MATRIX_LR", "lower MATRIX_LR", "raise EMBEDDING_LR", "lower UNEMBEDDING_LR"),
    *("deeper and narrower", "shallower and wider", "warm down over 70 % of the run", "no warm-up", "RoPE base 50000"),
    *("window pattern SSL", "window pattern L", "SwiGLU instead of ReLU squared", "GELU MLP", "no logit softcap"),
    *("softcap 20", "weight decay 0.1 on matrices", "weight decay follows the LR", "value embeddings in all layers"),
    *(
        "Adam beta2 0.99",
        "Muon momentum 0.97",
        "five Newton-Schulz steps",
        "tie the embeddings",
        "bigger head dimension",
    ),
    *(
        "label smoothing 0.05",
        "z-loss 1e-4",
        "gradient clipping at 1",
        "parallel attention and MLP",
        "scaled residuals",
    ),
)
KEEPS = (0, 2, 3, 7, 8, 13, 15, 19, 22, 24, 31, 33, 38, 40, 47, 55, 58, 66, 79, 90, 101, 117, 119)
CRASHES = (11, 29, 44, 63, 64, 88, 110)


def five_columns() -> str:
    rng = random.Random(126)
    best, memory = 0.9979, 44.0
    lines = ["commit\tval_bpb\tmemory_gb\tstatus\tdescription", "baseline\t0.997900\t44.0\tkeep\tbaseline"]
    for row in range(1, 126):
        idea = f"{rng.choice(IDEAS)}{rng.choice(['', '', f' ({rng.choice((2, 4, 8))} layers)'])}"
        commit = f"{rng.getrandbits(28):07x}"
        if row in CRASHES:
            lines.append(f"{commit}\t0.000000\t0.0\tcrash\t{idea} (out of memory)")
        elif row in KEEPS:
            best -= rng.choice((0.0003, 0.0006, 0.0011, 0.0029, 0.0041)) * rng.uniform(0.6, 1.2)
            lines.append(f"{commit}\t{best:.6f}\t{memory + rng.choice((0, 0, 0.2, -1.3)):.1f}\tkeep\t{idea}")
        else:
            value = best + rng.lognormvariate(-6.0, 1.1) - 0.0002
            lines.append(f"{commit}\t{value:.6f}\t{memory + rng.uniform(-6, 12):.1f}\tdiscard\t{idea}")
    return "\n".join(lines) + "\n"


def odd_columns() -> str:
    rng = random.Random(13)
    header = (
        "Exp ID,Timestamp,Result,Notes,best so far,Score,peak_vram_mb,GPU,git commit,steps,total_tokens_M,cost,seed"
    )
    lines, best = [header.replace(",", "\t")], 1.4021
    for number in range(1, 41):
        idea, score = rng.choice(IDEAS) if number > 1 else "unchanged", best + rng.lognormvariate(-5.3, 1.0) - 0.0035
        status = "KEPT" if score < best or number == 1 else rng.choice(["Discarded", "discarded", "discard"])
        if number in (6, 21):
            status, idea = (
                ("TIMEOUT", "no answer after 600 s") if number == 6 else ("CRASHED", f"{idea}, NaN in step 3")
            )
        failed = status in ("TIMEOUT", "CRASHED")
        best = min(best, score) if status == "KEPT" else best
        cells = [
            *(
                f"exp-{number:03d}",
                f"2026-03-{1 + number // 20:02d} {number % 20 + 2:02d}:14",
                status,
                idea,
                f"{best:.4f}",
            ),
            *("NA" if failed else f"{score:.4f}", "NA" if failed else f"{rng.uniform(900, 1900):.1f}", "RTX 4090"),
            *(f"{rng.getrandbits(32):08x}", "-" if failed else str(rng.randint(800, 1200)), "" if failed else "31.5"),
            *(f"${rng.uniform(0.01, 0.09):.3f}", "1337"),
        ]
        lines.append("\t".join(cells))
    return "\ufeff" + "\r\n".join(lines) + "\r\n"


if __name__ == "__main__":
    (HERE / "five_columns.tsv").write_bytes(five_columns().encode())
    (HERE / "odd_columns.tsv").write_bytes(odd_columns().encode())
