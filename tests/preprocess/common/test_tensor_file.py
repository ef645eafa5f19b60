"""A file of tensors holds each number of each, or is refused: codecs and HuBERT come in torch's own format."""

import pytest
import torch

from preprocess.common.errors import InputError
from preprocess.common.tensor_file import is_finite, read_tensors

ODD = {
    "sparse": lambda: torch.eye(3).to_sparse(),
    "rows": lambda: torch.eye(3).to_sparse_csr(),
    "meta": lambda: torch.ones(3, device="meta"),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "a view of one number": lambda: torch.ones(1).expand(10**13),
    "quantized": lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
    "complex": lambda: torch.ones(3, dtype=torch.complex64),
    "fp8": lambda: torch.ones(3).to(torch.float8_e4m3fn),
    "NaN": lambda: torch.tensor([1.0, torch.nan]),
    "no tensor": lambda: [1.0],
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ODD)
def test_odd_tensors_are_refused(kind, tmp_path):
    torch.save({"good": torch.ones(2), "odd": ODD[kind]()}, tmp_path / "model.pth")
    with pytest.raises(InputError) as caught:
        read_tensors(tmp_path / "model.pth", "Download it.")
    assert caught.value.where.startswith(str(tmp_path / "model.pth"))
    assert caught.value.found


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_nan_and_infinity_are_seen_wherever_they_are(dtype):
    for size in (1, 7, 1000):
        for number in (torch.nan, torch.inf, -torch.inf):
            for place in {0, size // 2, size - 1}:
                tensor = torch.ones(size, dtype=dtype)
                assert is_finite(tensor)
                tensor[place] = number
                assert not is_finite(tensor)
    assert is_finite(torch.ones(0, dtype=dtype))


def test_plain_tensors_are_read(tmp_path):
    given = {
        "weight": torch.ones(2, 3),
        "transposed": torch.ones(2, 3).T,
        "count": torch.tensor(3),
        "none": torch.ones(0),
    }
    torch.save(given, tmp_path / "model.pth")
    read = read_tensors(tmp_path / "model.pth", "Download it.")
    assert all(torch.equal(read[name], tensor) for name, tensor in given.items())
    with pytest.raises(InputError, match="float weights"):
        read_tensors(tmp_path / "model.pth", "Download it.", counts=False)
