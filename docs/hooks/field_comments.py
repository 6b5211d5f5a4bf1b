"""A griffe extension: comments at the end of a dataclass's fields become the "Attributes" of its API page."""

import ast

import griffe


class FieldComments(griffe.Extension):
    def on_class_members(self, *, node, cls, **kwargs):
        if cls.docstring is None or "Attributes:" in cls.docstring.value or "Args:" in cls.docstring.value:
            return
        comments = field_comments(node, cls.lines_collection[cls.filepath])
        if comments:
            attributes = "\n".join(f"    {name}: {comment}" for name, comment in comments.items())
            cls.docstring.value += f"\n\nAttributes:\n{attributes}"


def field_comments(node, lines):
    """Return the comment at the end of the line of each annotated field that has one."""
    comments = {}
    for field in node.body:
        if isinstance(field, ast.AnnAssign):
            # Offsets count bytes
            rest = lines[field.end_lineno - 1].encode()[field.end_col_offset :].decode().strip()
            comment = rest.removeprefix("#").strip()
            if rest.startswith("#") and not comment.startswith(("noqa", "type:")):
                comments[field.target.id] = comment
    return comments
