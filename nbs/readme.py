"Write README.md from nbs/index.ipynb: prose, code and text outputs; pictures by their place in the repository."

import json
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def part(cell) -> str:
    "One cell as Markdown."
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return source.replace("(images/", "(nbs/images/")
    if source.startswith("#| hide"):
        return ""
    shown = [] if source.startswith("#| echo: false") else [f"```python\n{source}\n```"]
    for output in cell["outputs"]:
        data = output.get("data", {})
        text = "".join(
            output.get("text", "") or ("" if "text/html" in data else data.get("text/plain", ""))
        )
        if "text/markdown" in data:
            shown.append("".join(data["text/markdown"]))
        elif text:
            shown.append(f"```\n{text.strip()}\n```")
    return "\n\n".join(shown)


if __name__ == "__main__":
    cells = json.loads((ROOT / "nbs/index.ipynb").read_text(encoding="utf-8"))["cells"]
    (ROOT / "README.md").write_text(
        "\n\n".join(p for c in cells if (p := part(c).strip())) + "\n", encoding="utf-8"
    )
