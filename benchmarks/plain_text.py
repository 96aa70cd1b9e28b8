"""Documentation to plain English documents: HTML, DocBook-like XML, man, pod, info, rst, md, text and docstrings.

Regular expressions, no parser: a page in 0.5 ms, the same bytes on every machine, and what is left of a strange tag
is one odd word in a real text. A page is cut at its headings into documents of 500 to 16,000 characters: sections are put
together up to a size that varies with the text (500, 1000, 2000 or 4000), and parted at paragraphs beyond four times
that, so that lengths vary as they do in the wild.
"""

import ast
import html
import re
import zlib
from collections.abc import Iterator

SMALLEST, LARGEST = 500, 16_000

_MARK = "\x0c"
_DROP = re.compile(r"<(script|style|head|nav|svg|footer)\b.*?</\1\s*>|<!--.*?-->", re.DOTALL | re.IGNORECASE)
_HEADING = re.compile(r"<(?:h[1-4]|section|title)\b[^>]*>", re.IGNORECASE)
_BLOCK = re.compile(
    r"</?(?:p|div|li|ul|ol|dl|dt|dd|tr|table|pre|blockquote|article|hr|h\d|section|item|note|title)\b[^>]*>",
    re.IGNORECASE,
)
_TAG = re.compile(r"<(?:[a-zA-Z/!?])[^>]*>|<br\s*/?>", re.IGNORECASE)
_SPACE_IN_LINE = re.compile(r"[ \t\r\u00a0]+")
_BLANK_LINES = re.compile(r"\s*\n\s*\n\s*")
_ROFF_ESCAPE = re.compile(r"\\f[A-Z]|\\f\(\w\w|\\s[-+]?\d|\\[&/,|^c%]|\\\*\(..|\\\*.")
_ROFF_LINE = re.compile(r"^\.\s*([A-Za-z]+)\s*(.*)$")
_UNDERLINE = re.compile(r"\n([^\n]{3,80})\n([=\-~^*#])\2{2,}[ \t]*\n")
_ENGLISH = re.compile(r"\b(?:the|of|to|and|is|in|that|for|be|this|with|are|by|it)\b", re.IGNORECASE)
_FOREIGN_NAME = re.compile(
    r"[./_-](?:ar|bg|ca|cs|da|de|el|es|eu|fi|fr|gl|hu|id|it|ja|ko|lt|lv|nb|nl|pl|pt|pt-br|pt_br|ro|ru|sk|sl|sr|sv|tr|uk|"
    r"vi|zh|zh-cn|zh_cn|zh_tw|zh-tw)(?:\.[a-z0-9-]+)?(?:$|/)|/help/(?!C/)|/translations/|_sources/|"
    r"\.(?:rs|c|h|cpp|hpp|py|js)\.html?$|genindex|/searchindex"
)
_FORMATS = {
    "html": ("html", "htm", "page", "xhtml"),
    "roff": (*"12345678", "3perl", "3tcl", "3tk", "n"),
    "text": ("txt", "rst", "md", "pod", "info", "text"),
}


def format_of(path: str) -> str | None:
    """`html`, `roff`, `text`, `python`, or None for what is no English documentation."""
    name = path.lower().removesuffix(".gz")
    if _FOREIGN_NAME.search(name):
        return None
    ending = name.rsplit(".", 1)[-1] if "." in name.rsplit("/", 1)[-1] else ""
    if ending == "py":
        return "python"
    return next((kind for kind, endings in _FORMATS.items() if ending in endings), None)


def documents(data: bytes, form: str) -> Iterator[str]:
    """The English documents in a file."""
    text = data.decode("utf-8", "replace").replace("\r\n", "\n").replace(_MARK, "\n")
    made = {"html": _html, "roff": _roff, "text": _text, "python": _docstrings}[form](text)
    for document in _cut(_BLANK_LINES.sub("\n\n", _SPACE_IN_LINE.sub(" ", made))):
        if _is_english(document):
            yield document


def _html(text: str) -> str:
    text = _HEADING.sub(f"\n\n{_MARK}", _DROP.sub(" ", text))
    return html.unescape(_TAG.sub("", _BLOCK.sub("\n\n", text))).replace("¶", "")


def _roff(text: str) -> str:
    lines = []
    for line in text.split("\n"):
        if not line.startswith((".", "'")):
            lines.append(line)
        elif (macro := _ROFF_LINE.match(line)) is not None:
            name, rest = macro.groups()
            if name in ("SH", "SS", "Sh", "Ss"):
                lines.append(f"\n{_MARK}{rest}\n")
            elif name in ("TP", "PP", "P", "LP", "IP", "HP", "Pp", "br", "sp"):
                lines.append("\n" + rest)
            elif len(name) <= 2 and name not in ("TH", "so", "de", "ie", "el", "if", "ds", "nr", "ig", "rm", "tr"):
                lines.append(rest.replace('"', ""))
    text = "\n".join(lines).replace("\\-", "-").replace("\\(aq", "'").replace("\\(lq", '"').replace("\\(rq", '"')
    return _ROFF_ESCAPE.sub("", text).replace("\\e", "\\")


def _text(text: str) -> str:
    text = re.sub(r"^=(?:head\d|item|over|back|cut|pod|encoding)\b", f"\n{_MARK}", text, flags=re.MULTILINE)
    text = re.sub(r"^#{1,4} ", f"\n{_MARK}", text, flags=re.MULTILINE)
    return _UNDERLINE.sub(rf"\n\n{_MARK}\1\n\n", text).replace("\x1f", f"\n{_MARK}")


def _docstrings(text: str) -> str:
    try:
        module = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):
        return ""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = [doc for node in ast.walk(module) if isinstance(node, kinds) and (doc := ast.get_docstring(node))]
    return f"\n\n{_MARK}".join(found)


def _cut(text: str) -> Iterator[str]:
    """Sections, put together while they are small and parted at paragraphs where they are large."""
    held: list[str] = []
    size = 0
    for section in text.split(_MARK):
        smallest = SMALLEST << (zlib.crc32(section[:200].encode("utf-8", "replace")) & 3)
        for piece in _pieces(section.strip(), 2 * smallest):
            held.append(piece)
            size += len(piece) + 2
            if size >= smallest:
                yield "\n\n".join(held)
                held, size = [], 0
    if held:
        yield "\n\n".join(held)


def _pieces(section: str, most: int) -> Iterator[str]:
    """A section, or runs of its paragraphs of about `most` characters."""
    if len(section) <= 2 * most:
        if section:
            yield section
        return
    held: list[str] = []
    size = 0
    for paragraph in section.split("\n\n"):
        for low in range(0, len(paragraph), most):
            part = paragraph[low : low + most]
            held.append(part)
            size += len(part) + 2
            if size >= most:
                yield "\n\n".join(held)
                held, size = [], 0
    if held:
        yield "\n\n".join(held)


def _is_english(text: str) -> bool:
    """Whether it is long enough, in a Latin script, and one word in twenty is among the commonest of English."""
    if not SMALLEST <= len(text) <= 2 * LARGEST:
        return False
    if len(text.encode("utf-8", "replace")) > 1.1 * len(text):
        return False
    return len(_ENGLISH.findall(text)) >= 0.05 * len(text.split())
