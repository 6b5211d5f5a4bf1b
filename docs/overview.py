"""Draw docs/overview.png: the data flow of the project, and the family's accuracy against its cost."""

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from fbnetv3 import model_zoo
from fbnetv3.arch import dump_arch, get_arch

# Table 4 of the paper: multiply-adds in millions, top-1 in percent
EFFICIENTNET = {"B0": (390, 77.3), "B2": (1000, 80.3), "B3": (1800, 81.7), "B4": (4200, 82.9)}
BLUE, ORANGE = "#1f5fa8", "#d9731a"


def main():
    figure = Figure(figsize=(11, 4.1), dpi=130)
    draw_flow(figure.add_axes((0.01, 0.02, 0.52, 0.96)))
    draw_family(figure.add_axes((0.60, 0.14, 0.385, 0.76)))
    figure.savefig(Path(__file__).with_suffix(".png"))


def draw_flow(axes):
    axes.set(xlim=(0, 100), ylim=(0, 100))
    axes.axis("off")
    text = dump_arch(get_arch("fbnetv3_e")).splitlines()
    rows = [line.split("{")[1].rstrip("}") for line in text if "{" in line][2:5]
    short = ["  ".join(row.split(": ")[1].split(",")[0] for row in line.split(", ")[:6]) for line in rows]
    definition = "block    k  e  c   n  s\n" + "\n".join(short) + "\n…"
    box(axes, 1, 66, 44, 30, "architecture, as in Table 2", definition, mono=True)
    box(axes, 55, 80, 44, 16, "exact cost", "MACs and parameters, without torch")
    box(axes, 55, 59, 44, 16, "scaling", "to a MACs target, to small images")
    box(axes, 1, 38, 44, 16, "network", "classifier, or maps at strides 2 to 32")
    box(axes, 55, 38, 44, 16, "model zoo", "published and trained weights")
    box(axes, 1, 8, 44, 18, "training: tools/train_net.py", "from one config: weights,\nmetrics, curve")
    box(axes, 55, 8, 44, 18, "your project", "create_model, torch.hub,\na detector's backbone")
    for start, end in (
        ((45, 88), (55, 88)),
        ((45, 70), (55, 67)),
        ((23, 66), (23, 54)),
        ((23, 38), (23, 26)),
        ((55, 46), (45, 46)),
        ((45, 40), (60, 26)),
    ):
        arrow = {"arrowstyle": "-|>", "color": "0.35", "lw": 1.4, "shrinkA": 1, "shrinkB": 1}
        axes.annotate("", end, start, arrowprops=arrow)


def box(axes, x, y, width, height, title, body, mono=False):
    axes.add_patch(
        FancyBboxPatch(
            (x, y), width, height, boxstyle="round,pad=0,rounding_size=2", fc="#f3f6fa", ec=BLUE, lw=1.2
        )
    )
    axes.text(x + 2, y + height - 2.5, title, va="top", weight="bold", color=BLUE, size=9)
    family = {"family": "monospace"} if mono else {}
    axes.text(x + 2, y + height - 9, body, va="top", size=8 if mono else 8.2, linespacing=1.35, **family)


def draw_family(axes):
    entries = [entry for entry in model_zoo.list_classifiers() if entry.tag == "fb_in1k"]
    macs, top1 = [entry.macs / 1e6 for entry in entries], [entry.top1 for entry in entries]
    axes.plot(macs, top1, "o-", color=BLUE, label="FBNetV3, published weights")
    for entry, x, y in zip(entries, macs, top1, strict=True):
        axes.annotate(
            entry.arch.name[-1].upper(), (x, y), (-4, 6), textcoords="offset points", ha="right", color=BLUE
        )
    axes.plot(
        *zip(*EFFICIENTNET.values(), strict=True), "s--", color=ORANGE, label="EfficientNet, from the paper"
    )
    for name, point in EFFICIENTNET.items():
        axes.annotate(name, point, (5, -11), textcoords="offset points", color=ORANGE)
    axes.set_xscale("log")
    axes.set_xticks([400, 600, 1000, 2000, 4000], ["400 M", "600 M", "1 G", "2 G", "4 G"])
    axes.minorticks_off()
    axes.set(xlabel="multiply-adds", title="ImageNet top-1, %", ylim=(76.5, 83.8))
    axes.legend(frameon=False, loc="lower right")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main()
