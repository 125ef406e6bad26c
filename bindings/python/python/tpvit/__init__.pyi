import os
from typing import Literal, Optional, Union, final

import numpy as np
import numpy.typing as npt

__all__ = ["Model", "__version__"]

__version__: str

@final
class Model:
    """A `.tpv` file, ready to run.

    Raises `OSError` if the file cannot be read, and `ValueError` if it holds no
    model, the instruction set does not exist or is not this CPU's, or `threads`
    is not 1 to 1024. Calls of several threads take turns.
    """

    def __new__(
        cls,
        source: Union[str, os.PathLike[str], bytes],
        *,
        threads: int = 1,
        isa: Optional[str] = None,
    ) -> Model:
        """Reads a path, or the `bytes` of a file.

        `isa` lowers the choice of the instruction set ("portable", "avx2", ...);
        the result has the same bits with each, and with any number of threads.
        """

    def run(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """The result of one picture, `[height, width, 3]`, or of each of a batch.

        Pixels are RGB as preprocessing leaves them (see `resize`), not
        normalised. The result is `output_shape`, with the pictures' axis before
        it for a batch. A C-contiguous array is not copied; do not write to it in
        another thread meanwhile.

        Raises `TypeError` if it is no array of uint8, `ValueError` if the shape
        does not fit.
        """

    def classify(
        self, pixels: npt.NDArray[np.uint8], top: int = 5
    ) -> list[tuple[str, float]]:
        """The `top` classes of one picture, likeliest first, with probabilities.

        A class without a label is called "class 3" or the like. Raises as `run`, and
        `ValueError` if the result of this model is features.
        """

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of a picture in pixels."""
    @property
    def output_shape(self) -> tuple[int, ...]:
        """Of one picture: `(classes,)`, or `(tokens, channels)` of features."""
    @property
    def classes(self) -> Optional[int]:
        """The number of classes; `None` if the result is features."""
    @property
    def labels(self) -> list[str]:
        """One for each class, or none."""
    @property
    def resize(self) -> Optional[int]:
        """What a picture's shorter side is resized to before the centre is
        cropped; `None` if the whole picture is resized to `image_size`."""
    @property
    def interpolation(self) -> Literal["bicubic", "bilinear"]:
        """The filter of that resize, antialiased as Pillow's."""
    @property
    def isa(self) -> str:
        """The instruction set in use."""
    @property
    def threads(self) -> int:
        """The number of threads in use."""
    @property
    def memory_bytes(self) -> int:
        """Bytes allocated for weights, constants and runs."""
