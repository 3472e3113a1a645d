from io import BytesIO

import numpy as np
from PIL import Image

from index.montage import montage, montage_png


def test_pictures_stand_in_rows_with_the_query_framed(shape_png):
    rows = [
        [(shape_png("circle", row), "query"), (shape_png("square", row), "0.91 square\nname"), (None, "gone")]
        for row in range(2)
    ]
    sheet = np.asarray(montage(rows)).astype(int)
    assert sheet.shape == (2 * 186 + 8, 3 * 152 + 8, 3)
    frame = sheet[5:8, 10:150]
    assert (np.abs(frame - [0x17, 0x69, 0xAA]).sum(axis=-1) == 0).any()
    assert (sheet[8:152, 312:456] == 255).all()  # a picture that is gone leaves its place empty


def test_a_long_caption_is_shortened_and_the_file_is_a_png(shape_png):
    data = montage_png([[(shape_png("circle", 0), "a very long name that does not fit into the cell at all")]])
    assert Image.open(BytesIO(data)).format == "PNG"
