"""Arguments and options that several commands share: one wording, and one way to understand them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

MODEL_FORMS = (
    "torchvision:resnet50, timm:resnet50, ultralytics:yolo11n, hf:FOLDER (or hf:resnet), "
    "package.module:factory or file.py:factory; a bare name is torchvision's."
)

Model = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_FORMS)]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="An argument of what makes the model, e.g. num_classes=10."),
]
Weights = Annotated[
    Path | None, typer.Option("--weights", metavar="FILE", help="Weights: .safetensors, or a state_dict of torch.save.")
]
Inputs = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        "--shape",
        metavar="SHAPE",
        help="Shape of the input, its batch first; default: 1x3x224x224. Once for each input.",
    ),
]
Dtype = Annotated[str, typer.Option(metavar="DTYPE", help="float32, bfloat16 or float16.")]
Device = Annotated[str, typer.Option(metavar="DEVICE", help="cpu, cuda, cuda:1, …")]
ChannelsLast = Annotated[bool, typer.Option("--channels-last", help="Channels-last memory format.")]
Runtime = Annotated[
    str,
    typer.Option(
        metavar="RUNTIME",
        help="What will run the network: eager, inductor, inductor-frozen, inductor:MODE, cudagraph, aoti or "
        "onnxruntime.",
    ),
]
Threads = Annotated[int | None, typer.Option(min=1, metavar="N", help="CPU threads; default: as PyTorch is set.")]
Cost = Annotated[str, typer.Option(metavar="COST", help="What the budget limits: latency, macs, params or memory.")]
Branches = Annotated[
    bool | None,
    typer.Option("--branches/--no-branches", help="Residual branches may be dropped whole; default: with data."),
]
Table = Annotated[
    Path | None, typer.Option("--table", metavar="PATH", help="Latency table, file or folder; default: your cache.")
]
Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="DATA",
        help="A folder of images (a folder a class, or images alone), or module:function that returns batches.",
    ),
]
Loss = Annotated[
    str | None,
    typer.Option("--loss", metavar="FUNCTION", help="module:function of (output, target); classes need none."),
]
Batch = Annotated[int, typer.Option(min=1, metavar="N", help="Images in a batch, where --data is a folder.")]
Ignore = Annotated[
    list[str] | None,
    typer.Option("--ignore", metavar="NAME", help='What stays as it is, e.g. "layer1.*". May be repeated.'),
]
RoundTo = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Widths are multiples of this; default: 8 or less.")
]
MinKeep = Annotated[
    float, typer.Option(min=0.0, max=1.0, metavar="SHARE", help="Least share of a layer's channels that is kept.")
]
Steps = Annotated[int | None, typer.Option(min=1, metavar="N", help="Remove in N steps; default: by the budget.")]
Tolerance = Annotated[
    float,
    typer.Option(min=0.0, metavar="SHARE", help="How far beside the budget is close enough, as a share of it."),
]
Compensate = Annotated[bool | None, typer.Option(help="Layers make up for what they lost; default: with --data.")]
Heal = Annotated[
    bool,
    typer.Option("--heal", help="Then train it without labels, by the dense network (1,000 steps); needs --data."),
]
Effort = Annotated[
    str,
    typer.Option(metavar="EFFORT", help="fast, normal, or thorough: several ways, the best is taken (needs --data)."),
]
State = Annotated[
    Path | None, typer.Option("--state", metavar="DIR", help="Keep the search there; after an interruption it goes on.")
]
Out = Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder to write.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output; words go to standard error.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
