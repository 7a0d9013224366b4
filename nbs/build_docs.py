"Build the site in _docs/: nbdev processes the notebooks, then Quarto (if installed) or smalldocs renders them."

import builtins
import functools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbdev.config
import pandas
import yaml
from latex2mathml.converter import convert
from nbdev.serve import proc_nbs

from tokenscope.app.cards import FAMILIES, cards
from tokenscope.app.gallery import gallery, write_pages
from tokenscope.app.house import ROOMS, room_pages

ROOT = Path(__file__).resolve().parent.parent
# Signatures say `"pandas.DataFrame"` in modules that load pandas only where it is used; nbdev reads
# them in processes of its own, which run these lines too.
builtins.pandas = pandas
# nbdev reads its settings five thousand times while it processes our pages.
nbdev.config._load_toml = functools.cache(nbdev.config._load_toml)


def sidebar() -> list:
    "The site's table of contents: guides, the seven questions with their techniques, the rooms."
    nbs = ROOT / "nbs"
    guides = [f"guides/{path.name}" for path in sorted((nbs / "guides").glob("*.ipynb"))]
    contents = ["index.ipynb"]
    contents.append({"section": "Guides", "contents": ["guides/gallery.md", *guides, "claims.md"]})
    for family, question in FAMILIES.items():
        pages = [f"{family}/{card['slug']}.ipynb" for card in cards() if card["family"] == family]
        first = {"text": "Overview", "href": f"{family}/index.ipynb"}
        contents.append({"section": question, "contents": [first, *pages]})
    for room, line in ROOMS.items():
        first = {"text": "Overview", "href": f"{room}/index.ipynb"}
        pages = [f"{room}/{page}.ipynb" for page in room_pages(room)]
        pages = [page for page in pages if (nbs / page).exists()]
        contents.append({"section": f"{room}: {line}", "contents": [first, *pages]})
    return contents


def without_latex(path: Path) -> None:
    "Write a page's formulas as MathML, which browsers show by themselves; a script for LaTeX would come from another host."
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            pieces = re.split(r"(```.*?```|`[^`]*`)", "".join(cell["source"]), flags=re.S)
            for i in range(0, len(pieces), 2):
                shown = re.sub(
                    r"\$\$(.+?)\$\$",
                    lambda m: convert(m[1].strip(), display="block"),
                    pieces[i],
                    flags=re.S,
                )
                pieces[i] = re.sub(
                    r"(?<![\\\w])\$(?!\s)([^$\n]+?)(?<!\s)\$(?!\w)", lambda m: convert(m[1]), shown
                )
            cell["source"] = "".join(pieces)
    path.write_text(json.dumps(notebook, ensure_ascii=False), encoding="utf-8")


DRAWS = re.compile(r"</?(div|span|table|svg|td|tr|style)\b|Figure\(|\bplt\.|\.plot\(|\bax\.")
FOLD_ABOVE = 14  # lines


def fold_plumbing(path: Path) -> None:
    "Fold long cells that only draw; a reader opens them with a click. Definitions stay open."
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        lines = source.splitlines()
        shown = cell["cell_type"] == "code" and not re.match(r"\s*#\|\s*(export|hide)", source)
        if shown and len(lines) > FOLD_ABOVE and DRAWS.search(source):
            cell["source"] = (
                f'#| code-fold: true\n#| code-summary: "Code of this picture"\n{source}'
            )
    path.write_text(json.dumps(notebook, ensure_ascii=False), encoding="utf-8")


GALLERY = re.compile(r"gallery\(\"\.\.\", family=\"(\w+)\"\)")


def without_hosts(path: Path) -> None:
    "Take out what a theme's sheet would load from another host: its fonts."
    text = path.read_text(encoding="utf-8")
    path.write_text(re.sub(r"@import url\(https?:[^)]*\);", "", text), encoding="utf-8")


def renew_gallery(path: Path) -> None:
    "Draw a family's techniques anew: its page may have been saved before one of them moved in."
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        family = GALLERY.search("".join(cell["source"]))
        if family and cell.get("outputs"):
            shown = gallery(ROOT / "nbs", family=family[1])
            cell["outputs"][0]["data"]["text/html"] = str(shown)
    path.write_text(json.dumps(notebook, ensure_ascii=False), encoding="utf-8")


def build() -> Path:
    "Build the whole site; return its folder."
    os.chdir(ROOT)
    for stale in ("_docs", "_proc"):
        shutil.rmtree(stale, ignore_errors=True)
    os.environ["PYTHONWARNINGS"] = "ignore:Found cells containing imports"  # hidden cells may mix
    proc_nbs("nbs", force=True)
    source = ROOT / "_proc"
    for generated in (
        "_quarto.yml",
        "nbdev.yml",
        "sidebar.yml",
    ):  # nbdev writes its own; ours is the root's
        (source / generated).unlink(missing_ok=True)
    config = yaml.safe_load((ROOT / "_quarto.yml").read_text())
    config["website"]["sidebar"]["contents"] = sidebar()
    (source / "_quarto.yml").write_text(yaml.safe_dump(config, sort_keys=False))
    shutil.copy(ROOT / "nbs/styles.css", source)
    shutil.copytree(ROOT / "nbs/images", source / "images", dirs_exist_ok=True)
    write_pages(source, ROOT / "nbs")
    for family in FAMILIES:
        renew_gallery(source / family / "index.ipynb")
    for page in source.rglob("*.ipynb"):
        without_latex(page)
        fold_plumbing(page)
    index = (
        source / "index.ipynb"
    )  # the README links to notebooks in the repository, the site to its own pages
    index.write_text(index.read_text(encoding="utf-8").replace("](nbs/", "]("), encoding="utf-8")
    tool = (
        ["quarto", "render"]
        if shutil.which("quarto")
        else [str(Path(sys.executable).with_name("smalldocs")), "render"]
    )
    subprocess.run([*tool, str(source)], check=True)
    shutil.copytree(source / "_docs", ROOT / "_docs", dirs_exist_ok=True)
    for sheet in (ROOT / "_docs").rglob("*.css"):
        without_hosts(sheet)
    return ROOT / "_docs"


if __name__ == "__main__":  # nbdev starts processes of its own
    print(build())
