"""What each extra installs: setup.py reads it, and so do errors that say what is missing.

The package is on no index, so "halp-fx[export]" would install nothing: the packages themselves are named.
"""

EXTRAS = {
    "demo": ("scikit-learn>=1.4",),
    "plots": ("matplotlib>=3.8",),
    "hub": ("huggingface_hub>=1.0",),
    "export": ("onnx>=1.16", "onnxscript>=0.5", "onnxruntime>=1.20"),
    "recipes": ("torchmetrics>=1.4", "pycocotools>=2.0.8", "matplotlib>=3.8"),
    "lightning": ("lightning>=2.3",),
    "huggingface": ("transformers>=4.44", "accelerate>=0.33"),
    "triton": ("triton>=3.6; platform_system == 'Linux'",),
}


def missing(what: str, package: str, error: ImportError, extra: str | None = None) -> str:
    """The words of an error: what needs a package, and the command that installs it, with the rest of its extra."""
    wanted = " ".join(f'"{requirement}"' for requirement in EXTRAS[extra]) if extra else package
    return f"{what} needs {package} ({error}): python -m pip install {wanted}"
