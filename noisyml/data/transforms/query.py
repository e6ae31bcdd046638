"""Pictures of an image-retrieval benchmark: boxes cut out, and sides that only ever shrink.

As in the code released with InsCLR and with the revisited Oxford and Paris benchmarks.
"""

from __future__ import annotations

from PIL import Image

from noisyml.checks import Count, checked

#: Left, top, right and bottom edge in pixels.
Box = tuple[float, float, float, float]


@checked
def benchmark_picture(picture: Image.Image, size: Count, box: Box | None = None) -> Image.Image:
    """A picture of the gallery, or the object that a query asks for.

    The longer side is brought to `size` pixels, that of a box to the share of `size` that it has of
    the longer side of its picture, so that gallery and query show an object equally large. Nothing
    is enlarged.

    Args:
        picture: the whole image.
        size: see above.
        box: of the query.
    """
    longest = max(picture.size)
    if box is not None:
        left, top, right, bottom = (int(edge) for edge in box)
        picture = picture.crop((left, top, right, bottom))
        size = max(1, int(size * max(picture.size) / longest))
    shrunk = picture.copy()
    shrunk.thumbnail((size, size), Image.Resampling.LANCZOS)
    return shrunk
