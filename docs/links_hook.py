# Copyright 2026 The Luna for Transformers authors.
# SPDX-License-Identifier: Apache-2.0
"""MkDocs hook: resolve links of pages to files outside docs/, which the site does not contain.

A picture is copied into the site. Any other file or folder is shown as its path, without a link. A target that does
not exist keeps its link, so that `mkdocs build --strict` fails.
"""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page


OUTSIDE = re.compile(r"(!?)\[([^\]]*)\]\((\.\./[^)\s]+)\)")


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    folder = Path(config.docs_dir)

    def inside(link: re.Match) -> str:
        is_picture, text, target = link.groups()
        path = (folder / target).resolve()
        if not path.exists():
            return link[0]
        name = path.relative_to(folder.parent.resolve()).as_posix()
        if is_picture:
            if files.get_file_from_path(name) is None:
                files.append(File.generated(config, name, abs_src_path=str(path)))
            return f"![{text}]({name})"
        return f"`{name}`" if text.startswith("`") else f"{text} (`{name}`)"

    return OUTSIDE.sub(inside, markdown)
