"""llama.cpp's block types as QTensors: the values are those of the `gguf` package, bit for bit."""

import base64
import hashlib

import numpy as np
import pytest

from bitwright.errors import NumericsError
from bitwright.numerics.ggml import TYPES, held
from bitwright.numerics.spec import QuantSpec

# Type -> the beginning of the SHA-256 of what `gguf` 0.19.0 decodes two blocks to, float32 (2, values), with -0 as 0;
# and the blocks, base64: random bytes, but for scales that are numbers. That of one block is negative where it may be.
GOLDEN: dict[str, tuple[str, str]] = {
    "Q4_0": ("04e8f25f706a0f3a74cfd79523cffd73", "77vl8alBBqCVaiavvM2v5WL5sytfVpPGQidq1astpzlFUTcO"),
    "Q4_1": ("8af75818545ef1d052ee8fff6a4c7188", "vy59J90G8n+PBjzSXhmmIfm9DMxyO5A5x5XKd0jcA9F6iJNNhVJzVw=="),
    "Q5_0": ("f19800d820ecff68fe485ebad4564c8c", "hrNGR2sja4JIG9n+Yw3Dzjvk68q3LxI9UiNHn255TVcDfiz96eFad4l4Hjc="),
    "Q5_1": ("cf6d04902b2621f7c17786d4fb3bf058", "QC+lN4/IPwsLtNtxvlciCYUdPST0wM+DHz7UOy9HWXeJVfbO1oHL6nF5ztLI+BSh"),
    "Q8_0": (
        "0d574ff54784710a391d8dadf72c9da5",
        "5jwR+F4EKbGffsDhVvZaMyLnkbiA7plePw0wfS+69ABpOt8sDQJ+1OWL56nrwoonHUOniFVjgUTrZgP3snJd4R/mrC8=",
    ),
    "Q2_K": (
        "f980e320642acc200a7edfc1b0ca67ae",
        "iKaBgnT+xwpos+S9ySs4eYdBbBfskJY+x2aIirS4Drp8XP2BEhvqnO4YEN/VFp+vJs17XDDIq6RNlyKZ6Me0G5odKw8YBgCpdNY7"
        "YzIgLJlHMpU8LEnEOUx9cyZbaq9hsoj70K7Pp2ZhYiNhHnZMk6o4j/q9CmpkErIJlx4tgnB29+SauPoZcnG+U6NEKxKM2tcrrQ+K"
        "7vQqC5om10/HjyViuHAxO0s9",
    ),
    "Q3_K": (
        "a1fca8fe74351084d6c206c135d9574e",
        "VRBUPcp78QE8zfirirSmA5lU6Ey+Oz9/EYPD34N1xRe054apqt90iPiSsSGROHrYaspW2FMcknuTH+jxbnlbmzMXZ+cS2+j1Mx3Z"
        "kX8B5kcQ3Twl9NIWkKBJRTE1VQ7AGTqL7ReD1T7JRGWNKr2WDESwOC6TQ45geI1R4nmhMfgTCz6kvS9dleV715FDbYQPTmZUYIE1"
        "u/uIXTRpWaSbNkAqTz3MSJ+2UR++CeXXK/g04E/gKMpJkeAqvXcnn+3CBtIxjKi4KHpvS3lSCVddcnfUVsD26BoOWE2MNQ==",
    ),
    "Q4_K": (
        "4cb90926b1e633dce5134d177a279263",
        "/zw2LFfbdR/yI3Jq2QaX90n3xhvYAWOoyaNWupHXn20k7joU69QThtj6726ebHDfQduprrUwHlgkt9sOUE8dlwaGk0do8AWvDVoj"
        "3bRl/FpIm0PnbqPjhJab5IekQOfD6lIEyrv5v+jmSMr/dwSsJtInoGnDkvTus2HCTvNmUwF4tHmTOCLDwM9rPL60r37PxD1iNAj4"
        "AiPjk93YCEU9a62Q79irorTQliJt+NRGpwP8sr3d2OHioJpjP3w0mQPLRj3E8+ozVIPlb2QWg0TRuWtBDDut4/Y5D0piMS5I0jLd"
        "w/PoSOP1XLfiLRutje0t1/sQZYN7l1hcrmVPLEK48nJl193X7sWSPrSG/GuzDlcaljcjMqOCRean3BYt3Ljz",
    ),
    "Q5_K": (
        "1bfeaf4324477de10af3ae2df5b6ca5d",
        "DzcKOQSug+U4XZjEaQEmvpjwnJOEqqWUX8PT1OHmOG2+Wx3yZ+vQ4PCj2F9fpGFpjzXitrn4Oezbg7UYTlSXEfUKhT87RhRuMgGp"
        "KVns/oSIapKKgq9w85ME676TfEFAgh9XyeCUWM4dmwmucDctrRrPXE8b8ZK3AbaCIlzrLqGwssvr3DO4+Ay/VkyznCpVi1N2nhdj"
        "9WXS4ym7SwbyM7wvQivj8PoM3WgveMYmgTYQONQ07t9b6nUhddC4TRXXBLbfl2efxhwqRSe/H0ORmpYipegZn6x6tLNTLIZEPZga"
        "r8N0MD/GqGvZLmCEPIFO6bEDIMYWG/Y1UEnB40pBdy3JAjy2N8ugJaqCaeUunqKJ6x0XIGATLypoKLx7adYPq6F3raIqWWlZbdIA"
        "03mXw8rLJbMHYLLQc4E95U6T4Lp3FFDX8P/6HJF9H+vLn9HpFbSvsehEUs2FT8W9o2Gw4A==",
    ),
    "Q6_K": (
        "2f38bbaf867129e56a1758f984f67d53",
        "LAM+bwrZLAU0+EpCtXK1QE2E67TGRKI/Zggo8/A3ADAWPsf48pEqkabJdT7g+foJs8FMTsioI5f2kuob+bR/KthyZR2hIYmtIROP"
        "FsYxZQVD5Kt0R4eBT4E28JFzIjfw8PSI21tY1ImueJOkKDHEz5vF+G+0ZXSomSpmN9opWpzdCas8hu/1MHMW7cLCiAuTg2R0YJ3j"
        "KArJ9KQ84uA5zfIU2XcmNcf1o9qK5qdWoNr0txYEr077DN/XI5RebbJWewiI11aoaFFEDzonUQXbHLqtJE3XoWmg0upQIA84Jsz8"
        "VXhN5gxQUNzPqanmEOHcFHqBb2WCEMxjpBNOIy8PIaiRGdS24VDEEOQuwHZu8+F5OYl/SRyBMuoNxJX5JdqSfb/TYiYehaNCa15D"
        "dFT9m8vZNsuFjqMYnnAjdPXXQ6lBiRwN68jHoRRooenOKOrS2od5rxwCs808VZdcsUvBU1sJZRURGNi4LaV8UPSgBd5m+kh3ajmY"
        "5O97YiMy31gpk8LQWBj31QaQYOl9DVGbpvQ6YakyBvU28aULKs5HT5CI2C8j",
    ),
    "IQ4_NL": ("b3495447c4dd3b8dbf6ff245cd576276", "MK3e8dOdreG21910oy0s/hgjpzQqcFmYOJ/hGavNOZfIAG5h"),
    "IQ4_XS": (
        "4d49b46343423fcc60470080d3156ecc",
        "ArQsrjsXn9Rzs0+GSn15YNZhVE4MTSlf0KWzqWgXHorxzcVL0gYON/2B87UoPFY/PTt6NQEzcVQeU4bavdkZdcKiPJjrPt8UzUIx"
        "WKQNs8CsL9nFq+s8lN4jVODWvLhMqLgZKpgX2hN6PBQzq9NfwzLca+d/ZI4hH2F4gJzUGSIi2jzY0YV0Idor+6NYm80U0cD5vH5U"
        "Cehsfky7xTHtRNqZhdd47HBOG9T2wAUCMtUWm0B8yU2zntEk5toEoegv7jsFBYruT2+142suHr5I4uTx4t32ghhgtUkNT15V/LXT"
        "1Ax012PIGKO4nKnh9DG60EfyEQj4xsZZIqmIqXNl0y9KnNmkb5is8N9bVS1Y6F4=",
    ),
    "MXFP4": ("e204275171d12c5ba51eb427b71e536b", "eAZa8XXk6MHCU8jQwsXaMMWDw0d1HyhED7fhv8ApP4lPpg=="),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_values_are_those_of_the_gguf_package(name: str) -> None:
    digest, text = GOLDEN[name]
    raw = np.frombuffer(base64.b64decode(text), np.uint8).reshape(2, -1)
    weight = held(TYPES[name], raw)
    values = weight.dequantize()
    assert values.shape == (2, TYPES[name].values)
    assert hashlib.sha256((values + np.float32(0)).tobytes()).hexdigest()[:32] == digest


def test_every_quantized_type_is_tried() -> None:
    assert GOLDEN.keys() == {name for name, kind in TYPES.items() if kind.spec is not None}


def q4_0(scale: float, first: int = 0) -> np.ndarray:
    """A block whose codes are `first`."""
    codes = np.full(16, first | first << 4, np.uint8)
    return np.concatenate([np.array([scale], np.float16).view(np.uint8), codes])[None]


def test_a_scale_of_zero_makes_zeros() -> None:
    assert not held(TYPES["Q4_0"], q4_0(0.0, 3)).dequantize().any()


@pytest.mark.parametrize("scale", [np.nan, np.inf])
def test_a_scale_that_is_no_number_is_refused(scale: float) -> None:
    with pytest.raises(NumericsError, match="a scale is not finite"):
        held(TYPES["Q4_0"], q4_0(scale))


def test_where_scales_are_said_to_be_positive_a_negative_one_is_refused() -> None:
    symmetric = QuantSpec(4, group_size=32)
    assert held(TYPES["Q4_0"], q4_0(0.5), symmetric).zero_point_NG is None
    with pytest.raises(NumericsError, match="a scale is negative"):
        held(TYPES["Q4_0"], q4_0(-0.5), symmetric)


def test_a_power_that_is_no_number_is_refused() -> None:
    block = np.full((1, 17), 255, np.uint8)
    with pytest.raises(NumericsError, match="a scale is not finite"):
        held(TYPES["MXFP4"], block)
