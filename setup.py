"Read `settings.ini` and hand it to setuptools, so that no metadata is written twice."
import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
ini = ConfigParser(delimiters=["="], comment_prefixes=["#"])
ini.read(here / "settings.ini", encoding="utf-8")
cfg = ini["DEFAULT"]
version = re.search(r'^__version__ = "(.+)"', (here / "tokenscope/__init__.py").read_text(encoding="utf-8"), re.M)[1]
extras = {key.removesuffix("_requirements"): value.split() for key, value in cfg.items() if key.endswith("_requirements")}

setup(
    version=version,
    description=cfg["description"],
    long_description=(here / "README.md").read_text(encoding="utf-8") if (here / "README.md").exists() else cfg["description"],
    long_description_content_type="text/markdown",
    author=cfg["author"],
    license=cfg["license"],
    keywords=cfg["keywords"].split(),
    packages=find_packages(include=["tokenscope", "tokenscope.*"]),
    package_data={"tokenscope": ["py.typed", "**/*.pyi", "shipped/**/*"]},
    install_requires=cfg["requirements"].split(),
    extras_require=extras,
    entry_points={"console_scripts": [cfg["console_scripts"]], "nbdev": ["tokenscope=tokenscope._modidx:d"]},
)
