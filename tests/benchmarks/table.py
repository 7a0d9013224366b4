"Print what `make bench` found as one table: a row for each measurement, the aims beside."
import json
from pathlib import Path

rows = [json.loads(line) for line in Path(__file__).with_name("results.jsonl").read_text().splitlines()]
for (work, unit) in dict.fromkeys((row["work"], row["unit"]) for row in rows):
    print(f"\n{work}, {unit}")
    for row in rows:
        if (row["work"], row["unit"]) == (work, unit):
            aim = "" if row["aim"] is None else f"aim {row['aim']:.2f}: {'met' if row['number'] <= row['aim'] else 'not met'}"
            print(f"  {row['who'] + ' ' + (row['version'] or ''):24}{row['what']:40}{row['number']:9.2f}   {aim}")
