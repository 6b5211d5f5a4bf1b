"""Random definitions from the paper's Table 2."""

from fbnetv3.arch import ArchDef, Row, Stage

# channels (low, high, step), layers (low, high), stride, squeeze-and-excite; None: fixed expansion of 1
BODY = [
    ((16, 24, 2), (1, 4), 1, "none", None),
    ((20, 32, 4), (4, 7), 2, "none", 0),
    ((24, 48, 4), (4, 7), 2, "hsigmoid", 1),
    ((56, 84, 4), (4, 8), 2, "none", 2),
    ((96, 144, 4), (6, 10), 1, "hsigmoid", 2),
    ((180, 224, 4), (5, 9), 2, "hsigmoid", 3),
]


def random_arch(rng, name):
    """A definition drawn uniformly from Table 2; stages that share a superscript share their expansions."""
    first = [rng.randint(4, 7) for _ in range(4)]
    rest = [rng.randint(2, 5) for _ in range(3)]
    rest.append(rng.randint(4, 7))  # the last searched stage has no slash: all its blocks are alike
    first[3] = rest[3]
    stages = [Stage((Row("conv", rng.randrange(16, 25, 2), kernel=3, stride=2),))]
    for channels, layers, stride, se, group in BODY:
        c, k, n = (
            rng.randrange(channels[0], channels[1] + 1, channels[2]),
            rng.choice([3, 5]),
            rng.randint(*layers),
        )
        if group is None:
            stages.append(Stage((Row("mbconv", c, n, stride, kernel=k, expansion=1, se=se),)))
            continue
        rows = [Row("mbconv", c, 1, stride, kernel=k, expansion=first[group], se=se)]
        if n > 1:
            rows.append(Row("mbconv", c, n - 1, 1, kernel=k, expansion=rest[group], se=se))
        stages.append(Stage(tuple(rows)))
    last = Row("mbconv", rng.randrange(180, 225, 4), kernel=rng.choice([3, 5]), expansion=6, se="hsigmoid")
    stages += [Stage((last,)), Stage((Row("mbpool", 1984, expansion=6),))]
    resolution = rng.randrange(224, 273, 8)
    return ArchDef(name, tuple(stages), resolution, resolution)
