"""Pictures of images in rows, with captions and a title."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from fbnetv3.training.reports.image_grid import draw_image_grid

TITLE = "all mistakes (2 of 360 images are wrong); green: true class, red: prediction"


@pytest.mark.parametrize("count", [0, 1, 2, 8])
def test_the_title_fits_however_few_images_there_are(count):
    figure = draw_image_grid([np.zeros((8, 8), np.uint8)] * count, [["a"]] * count, title=TITLE)
    renderer = FigureCanvasAgg(figure).get_renderer()
    [title] = [text for text in figure.texts if text.get_text() == TITLE]
    box = title.get_window_extent(renderer)
    assert box.x0 >= 0 and box.x1 <= figure.bbox.width
