import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from adaface.metrics.outcome import Outcome
from adaface.metrics.results import SetResult, evaluate_set
from adaface.reporting.hardest_pairs import hardest_pairs
from adaface.reporting.page import page_template
from adaface.reporting.report import ReportContent, write_report
from adaface.reporting.tables import Cell, ReportTable, Row
from tests.reporting.test_hardest_pairs import Images
from tests.reporting.test_quality import Curve
from tests.support.browser import in_browser, needs_chromium

EVIL = "<script>alert('x')</script><img src=http://evil.example/a.png onerror=alert(1)>\"'&"
VOID = {"meta", "img", "br", "link", "input", "hr", "wbr"}


class Page(HTMLParser):
    """The parts of a page; refuses tags that are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.starts: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.in_word = False  # after <wbr>, a place to break, not a space
        self.source = text
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.starts.append((tag, dict(attributes)))
        self.in_word = tag == "wbr" and bool(self.words)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.starts.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> while {self.open} are open"
        self.open.pop()
        self.in_word = False

    def handle_data(self, data):
        if "style" in self.open:
            return
        if self.in_word:
            self.words[-1] += data
        else:
            self.words.append(data)
        self.in_word = False

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def having(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.starts if name == tag]

    @property
    def headings(self) -> list[str]:
        return [attributes["id"] for attributes in self.having("h2")]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/data/a b/c.png", "/<wbr>data/<wbr>a b/<wbr>c.<wbr>png"),
        ("Ann_von_der-Au_000123.jpg", "Ann_<wbr>von_<wbr>der-<wbr>Au_<wbr>000123.<wbr>jpg"),
        ("correlation 0.993, -1.5 <b> ...", "correlation 0.993, -1.5 &lt;b&gt; ..."),
        ("--arch on 2026-11-30, a-1, 1-a", "--arch on 2026-11-30, a-<wbr>1, 1-<wbr>a"),
        ("C:\\x\\", "C:\\<wbr>x\\"),
        ('a&b\'s_"c"', "a&amp;b&#x27;s_<wbr>&quot;c&quot;"),
    ],
)
def test_names_break_between_their_words(tmp_path, text, shown):
    (tmp_path / "page").write_text("{{ text | breakable }}")
    assert page_template(tmp_path / "page").render(text=text) == shown


def page_of(folder: Path, content: ReportContent) -> Page:
    write_report(folder / "report.html", content)
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def result(name: str = "lfw", pairs: int = 200, gap: float = 1.0) -> SetResult:
    generator = np.random.default_rng(0)
    issame = np.arange(pairs) % 2 == 0
    first, second = generator.normal(size=(2, pairs, 16))
    embeddings = np.stack([first, second + gap * issame[:, None] * first], axis=1).reshape(2 * pairs, 16)
    return evaluate_set(name, embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True), issame)


def metrics() -> pd.DataFrame:
    losses = pd.DataFrame({"epoch": [0, 0, 1, 1], "step": [4, 9, 14, 19], "train_loss": [9.0, 7, 5, 4], "lr": 0.1})
    validation = {"val_acc": [60.0, 70], "lfw_acc": [61.0, 71], "cfp_fp_acc": [59.0, 69], "target_cosine": [0.1, 0.3]}
    health = {name: [9.0, 8.0] for name in ("gradient_norm", "gradient_norm_max", "feature_norm")}
    health |= {f"feature_norm_{name}": [1.0, 9.0] for name in ("std", "min", "max")}
    ends = pd.DataFrame({"epoch": [0, 1], "step": [9, 19], **validation, **health})
    return pd.concat([losses, ends], ignore_index=True)


def everything(name: str = "lfw", note: str = "a note") -> ReportContent:
    lfw, shares = result(name), np.linspace(0, 0.9, 50)
    object.__setattr__(lfw, "intervals", {"accuracy": (97.25, 99.75), "tar_at_far_0.1": (98.0, 100.0)})
    images = Images(2 * len(lfw.issame))
    images.name, images.broken = name, 2 * int(np.argmin(lfw.similarity + ~lfw.issame))  # of the hardest genuine pair
    image_norms = np.full((len(lfw.issame), 2), 21.5)
    norms = np.random.default_rng(1).gamma(20, size=100)
    outcome = Outcome(
        protocol="ijbc",
        data=f"IJB-C {name}",
        numbers={f"TAR {name}": 95.123, "rank-1": float("nan")},
        intervals={f"TAR {name}": (94.0, 96.0)},
        notes=(note,),
        similarity=lfw.similarity,
        issame=lfw.issame,
        norms=norms,
    )
    return ReportContent(
        title=f"run of {name}",
        date="2026-11-24",
        evaluated=f"ir_50 on {name}",
        sets=[lfw, result("cfp_fp", gap=0.5)],
        outcomes=[outcome],
        tables=[ReportTable(f"Paper {name}", note, ("set", name), (Row((Cell(name), Cell(note, name))),), (note,))],
        metrics=metrics().rename(columns={"lfw_acc": f"{name}_acc"}),
        rejections={name: Curve(shares, 0.1 * (1 - shares), 1e-3)},
        norms={name: norms},
        hardest=[hardest_pairs(images, lfw.similarity, lfw.issame, 3, norms=image_norms, threshold=0.3)],
        options={"arch": "ir_50", f"option {name}": note, "lr_milestones": [12, 20], "use_16bit": True, "empty": ""},
        manifest={"versions": {"torch": "2.13.0", "cuda": None}, name: note},
        notes=[note],
        warnings=[f"{name}: the feature norm contradicts image quality"],
    )


@pytest.fixture(scope="module")
def full(tmp_path_factory) -> Page:
    return page_of(tmp_path_factory.mktemp("report"), everything())


def test_everything_that_is_given_is_there(full):
    assert full.headings == ["warnings", "verification", "protocols", "curves", "similarities", "quality", "training",
                             "pairs", "options", "manifest"]  # fmt: skip
    for text in (
        "run of lfw", "ir_50 on lfw · 2026-11-24", "Mean accuracy", "2 sets, 400 pairs", "97.25 to 99.75",
        "98.00 to 100.00", "mean", "IJB-C lfw", "95.12", "94.00 to 96.00", "Paper lfw", "Error versus reject",
        "Feature norms", "Loss", "Learning rate", "Validation accuracy", "70.00 %", "Gradient norm",
        "Target cosine", "Genuine pairs, least similar", "Impostor pairs, most similar", "norms 21.5 and 21.5",
        "lr_milestones", "12, 20", "versions: torch", "2.13.0", "lfw: the feature norm contradicts image quality",
    ):  # fmt: skip
        assert text in full.text, text


def test_the_curves_are_svg_with_names_and_texts(full):
    pictures = [attributes for attributes in full.having("svg") if attributes.get("role") == "img"]
    assert len(pictures) == 2 + 3 + 2 + 6
    ids = [attributes["id"] for _, attributes in full.starts if "id" in attributes]
    assert len(set(ids)) == len(ids), "an id is there twice"
    for picture in pictures:
        assert set(picture["aria-labelledby"].split()) <= set(ids)
    assert "false accept rate (FAR)" in full.text


def test_the_page_is_one_that_every_reader_can_use(full):
    assert full.having("html") == [{"lang": "en"}]
    assert len(full.having("title")) > 1  # of the page, and of each picture
    assert len(full.having("h1")) == 1
    assert all(attributes["scope"] in ("col", "row") for attributes in full.having("th"))
    assert all(attributes.get("alt") for attributes in full.having("img"))
    assert all(int(attributes["width"]) == 112 for attributes in full.having("img"))
    scrolling = [attributes for attributes in full.having("div") if attributes.get("class") == "scroll"]
    assert all(attributes["tabindex"] == "0" and attributes["role"] == "region" for attributes in scrolling)
    linked = [attributes["href"].removeprefix("#") for attributes in full.having("a")]
    assert linked == [heading for heading in full.headings if heading != "warnings"]


def test_pictures_are_inside_and_one_that_is_broken_is_said_to_be(full):
    sources = [attributes["src"] for attributes in full.having("img")]
    assert len(sources) + full.text.count("cannot be read") == 12
    for source in sources:
        head, _, data = source.partition(",")
        assert head == "data:image/jpeg;base64"
        assert base64.b64decode(data, validate=True)[:2] == b"\xff\xd8"


def test_pairs_on_the_wrong_side_of_the_threshold_are_called_so(tmp_path):
    similarity = np.array([0.2, 0.9, 0.4, 0.1])  # genuine 0.2 and 0.9, impostors 0.4 and 0.1
    hard = hardest_pairs(Images(8), similarity, np.array([True, True, False, False]), 2, threshold=0.3)
    page = page_of(tmp_path, ReportContent("x", hardest=[hard]))
    assert page.text.count("wrongly rejected") == page.text.count("wrongly accepted") == 1


def external(page: Page) -> list[str]:
    """What a browser would fetch."""
    names = ("src", "href", "xlink:href", "srcset", "data", "action")
    places = [attributes[name] for _, attributes in page.starts for name in names if name in attributes]
    return [place for place in places if not place.startswith(("data:", "#"))]


def test_nothing_is_loaded_and_no_script_runs(full, tmp_path):
    write_report(tmp_path / "report.html", everything())
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert external(full) == []
    assert not full.having("script") and not full.having("link") and not full.having("iframe")
    assert "@import" not in text and "http://" not in text and "https://" not in text
    assert not re.search(r"url\((?!#)", text)  # a reference inside the page loads nothing
    (policy,) = [a["content"] for a in full.having("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")


def test_names_and_notes_are_texts_whatever_they_say(tmp_path):
    page = page_of(tmp_path, everything(EVIL, EVIL))
    assert not page.having("script")
    assert external(page) == []
    handlers = [name for _, attributes in page.starts for name in attributes if name.startswith("on")]
    assert not handlers
    assert page.text.count("<script>alert('x')</script>") > 20


@pytest.mark.parametrize(
    ("part", "headings"),
    [
        ({}, []),
        ({"sets": [result()]}, ["verification", "curves", "similarities"]),
        ({"outcomes": [Outcome("tinyface", "TinyFace", {"rank-1": 70.0})]}, ["protocols"]),
        ({"metrics": metrics()[["epoch", "step", "train_loss"]]}, ["training"]),
        ({"metrics": metrics().iloc[:0]}, []),
        ({"norms": {"lfw": np.array([20.0, 21])}}, ["quality"]),
        ({"norms": {"lfw": np.zeros((3, 1))}}, []),
        ({"hardest": [hardest_pairs(Images(2), np.array([0.5]), np.array([True]), 0)]}, []),
        ({"options": {"arch": "ir_50"}}, ["options"]),
        ({"warnings": ["careful"]}, ["warnings"]),
    ],
    ids=lambda part: " ".join(part) if isinstance(part, dict) else "",
)
def test_what_is_missing_is_left_out(tmp_path, part, headings):
    page = page_of(tmp_path, ReportContent("only a title", **part))
    assert page.headings == headings
    assert "only a title" in page.text
    assert not page.having("nav") or len(headings) > 1
    assert not re.search(r"\bnan\b|\bNone\b", page.text)


def test_a_set_of_one_kind_of_pairs(tmp_path):
    same = evaluate_set("same", np.tile(np.eye(4)[:1], (8, 1)), np.ones(4, bool))
    page = page_of(tmp_path, ReportContent("x", sets=[same]))
    assert page.headings == ["verification", "similarities"]
    assert "same: no impostor pairs: no error rates" in page.text
    both = page_of(tmp_path, ReportContent("x", sets=[same, result()]))
    assert "No curve, because genuine or impostor pairs are missing: same." in both.text


def test_axes_of_few_pairs_have_plain_labels(tmp_path):
    page = page_of(tmp_path, ReportContent("x", sets=[result(pairs=20)]))
    assert "curves" in page.headings
    assert "$" not in page.text and "math" not in page.text


def test_a_set_has_one_colour_in_all_pictures(full):
    colors = re.findall(r'stroke-(\w+)"[^>]*/></svg> lfw(?:: [^<]*)?</li>', full.source)
    assert len(colors) == 5  # ROC, DET, error versus reject, norms, validation
    assert len(set(colors)) == 1


def test_many_pairs_and_many_pictures_make_a_small_file(tmp_path):
    pairs = 1_000_000
    generator = np.random.default_rng(0)
    issame = generator.random(pairs) < 0.01
    similarity = generator.normal(np.where(issame, 0.6, 0.0), 0.15)
    noise = generator.integers(0, 256, (112, 112, 3), dtype=np.uint8)  # what compresses worst
    images = Images(2 * pairs)
    images.read = lambda index: noise
    hard = [hardest_pairs(images, similarity, issame, 20) for _ in range(12)]
    steps = np.arange(300_000)
    table = pd.DataFrame(
        {"step": steps, "epoch": steps // 10_000, "train_loss": generator.random(len(steps)), "lr": 0.1}
    )
    outcomes = [
        Outcome("ijbc", "IJB-C", {"TAR": 95.0}, similarity=similarity, issame=issame, norms=similarity[:300_000])
    ]
    write_report(tmp_path / "report.html", ReportContent("many", outcomes=outcomes, hardest=hard, metrics=table))
    assert (tmp_path / "report.html").stat().st_size < 3_000_000


@needs_chromium
@pytest.mark.parametrize("name", ["lfw", EVIL])
def test_a_browser_opens_it_without_complaint(tmp_path, name):
    write_report(tmp_path / "report.html", everything(name))
    done = in_browser(tmp_path / "report.html")
    assert "CONSOLE" not in done.stderr, done.stderr
    shown = Page(done.stdout)
    written = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert [tag for tag, _ in shown.starts] == [tag for tag, _ in written.starts]  # nothing had to be mended


WIDTHS = """<!doctype html><body><script>
onload = () => { document.body.dataset.widths = [...document.querySelectorAll("iframe")].map(
  (frame) => frame.contentDocument.documentElement.scrollWidth).join(" "); };
</script>%s"""


@needs_chromium
def test_no_page_is_wider_than_the_screen(tmp_path):
    widths = [320, 400, 700, 1000, 1400]
    for name in ("lfw", "a_long_name_" * 20):
        write_report(tmp_path / "report.html", everything(name, name))
        frames = [
            f'<iframe src="report.html" style="width:{width}px;height:600px;border:0"></iframe>' for width in widths
        ]
        (tmp_path / "frames.html").write_text(WIDTHS % "".join(frames))
        done = in_browser(tmp_path / "frames.html", "--allow-file-access-from-files", "--hide-scrollbars")
        (body,) = Page(done.stdout).having("body")
        assert [int(width) for width in body["data-widths"].split()] == widths
