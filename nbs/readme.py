"""Write README.md from nbs/index.ipynb: prose, code and text outputs; pictures by their place in the repository.

The table of techniques is made from the cards, in the notebook's saved output as well."""

import json
from pathlib import Path

from tokenscope.app.gallery import gallery_table

ROOT = Path(__file__).resolve().parent.parent
INDEX = ROOT / "nbs/index.ipynb"


def part(cell) -> str:
    "One cell as Markdown."
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return source.replace("(images/", "(nbs/images/")
    if source.startswith("#| hide"):
        return ""
    shown = [] if source.startswith("#| echo: false") else [f"```python\n{source}\n```"]
    said = ""  # what a cell printed, perhaps in several outputs
    for output in cell["outputs"]:
        data = output.get("data", {})
        said += "".join(output.get("text", ""))
        text = "".join(data.get("text/plain", ""))
        if "text/html" in data and "█" not in text:  # of what is drawn, a strip has its bars
            text = ""
        if "text/markdown" in data:
            shown.append("".join(data["text/markdown"]))
        elif text:
            shown.append(f"```\n{text.strip()}\n```")
    if said:
        shown.append(f"```\n{said.strip()}\n```")
    return "\n\n".join(shown)


def renew_table(notebook: dict) -> bool:
    "Write the saved table of techniques anew from the cards; did it change?"
    for cell in notebook["cells"]:
        if "Markdown(gallery_table())" in "".join(cell["source"]):
            data = cell["outputs"][0]["data"]
            before, now = "".join(data["text/markdown"]), gallery_table()
            data["text/markdown"] = now.splitlines(keepends=True)
            return before != now
    return False


if __name__ == "__main__":
    notebook = json.loads(INDEX.read_text(encoding="utf-8"))
    if renew_table(notebook):
        text = json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True)
        INDEX.write_text(text + "\n", encoding="utf-8")
    (ROOT / "README.md").write_text(
        "\n\n".join(p for c in notebook["cells"] if (p := part(c).strip())) + "\n",
        encoding="utf-8",
    )
