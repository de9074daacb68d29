"""braindecode: networks that read EEG and EMG, each for 22 electrodes and 4 seconds at 250 Hz where it allows that."""

from __future__ import annotations

from typing import Any

_SIGNAL = {"n_chans": 22, "n_outputs": 4, "n_times": 1000, "sfreq": 250}
_PLACED = ("DANCE", "DGCNN", "EEGSym", "SignalJEPA", "SignalJEPA_Contextual", "ZUNA")  # They ask where electrodes lie.

# Name -> what a network is given beside `_SIGNAL`.
_OPTIONS: dict[str, dict[str, Any]] = {
    "ATCNet": {},
    "AttentionBaseNet": {},
    "AttnSleep": {"n_chans": 1, "n_times": 3000, "sfreq": 100},
    "BDTCN": {},
    "BENDR": {"encoder_h": 64, "contextualizer_hidden": 96, "transformer_layers": 2, "transformer_heads": 4},
    "BIOT": {"embed_dim": 64, "num_heads": 4, "num_layers": 2},
    "BrainModule": {},
    "CBraMod": {"n_layer": 2, "dim_feedforward": 128},
    "CTNet": {},
    "CodeBrain": {"n_layer": 1, "codebook_size_t": 64, "codebook_size_f": 64},
    "ContraWR": {},
    "DANCE": {"n_queries": 20},
    "DGCNN": {},
    "Deep4Net": {},
    "DeepSleepNet": {"n_chans": 1, "n_times": 3000, "sfreq": 100},
    "EEGConformer": {"num_layers": 2},
    "EEGDINO": {"n_chans": 19, "n_layer": 2, "dim_feedforward": 128},
    "EEGITNet": {},
    "EEGInceptionERP": {},
    "EEGInceptionMI": {},
    "EEGMiner": {},
    "EEGNeX": {},
    "EEGNet": {},
    "EEGPT": {"embed_dim": 64, "depth": 2, "num_heads": 4},
    "EEGSimpleConv": {},
    "EEGSym": {},
    "EEGTCNet": {},
    "EMG2QwertyNet": {"n_chans": 32, "n_times": 4000},
    "FBCNet": {},
    "FBLightConvNet": {},
    "FBMSNet": {},
    "HybridNet": {},
    "IFNet": {},
    "LUNA": {},
    "Labram": {"n_chans": 128, "num_layers": 2},
    "MEDFormer": {"embed_dim": 64, "num_heads": 4, "num_layers": 2},
    "MSVTNet": {},
    "MVPFormer": {},
    "NeuroPose": {},
    "PBT": {"num_layers": 2},
    "SCCNet": {},
    "SPARCNet": {},
    "SSTDPN": {},
    "STEEGFormer": {"embed_dim": 64, "depth": 2, "num_heads": 4},
    "SensingDynamics": {"n_chans": 16, "n_times": 2000, "sfreq": 2000},
    "ShallowFBCSPNet": {},
    "SignalJEPA": {},
    "SignalJEPA_Contextual": {},
    "SignalJEPA_PostLocal": {},
    "SignalJEPA_PreLocal": {},
    "SincShallowNet": {},
    "SleepStagerBlanco2020": {},
    "SleepStagerChambon2018": {"n_times": 3000, "sfreq": 100},
    "SyncNet": {},
    "TCFormer": {},
    "TCN": {},
    "TIDNet": {},
    "TSception": {},
    "USleep": {"n_times": 3000, "sfreq": 100, "depth": 4},
    "VEMG2Pose": {"n_chans": 16, "n_times": 4000, "sfreq": 2000},
    "ZUNA": {"n_times": 1024, "dim": 64, "n_layers": 2},
}


def names() -> list[str]:
    return list(_OPTIONS)


def create(name: str) -> Any:
    import inspect

    from braindecode import models

    kind = getattr(models, name)
    allowed = inspect.signature(kind.__init__).parameters
    options = {**_SIGNAL, **_OPTIONS[name]}
    if name in _PLACED:
        options["chs_info"] = _electrodes(options["n_chans"])
    return kind(**{k: v for k, v in options.items() if k in allowed})


def inputs(name: str, model: Any) -> Any:
    import torch

    options = {**_SIGNAL, **_OPTIONS[name]}
    return torch.randn(2, options["n_chans"], options["n_times"])


def _electrodes(count: int) -> list[dict[str, Any]]:
    """Channels on a half sphere of 9 cm, at different places."""
    import math

    names = (
        *("Fp1", "Fp2", "F7", "F3", "Fz", "F4", "F8", "FC5", "FC1", "FC2"),
        *("FC6", "T7", "C3", "Cz", "C4", "T8", "CP5", "CP1", "CP2"),
        *("CP6", "P7", "P3", "Pz", "P4", "P8", "O1", "Oz", "O2"),
    )
    found = []
    for i in range(count):
        up, turn = (i + 0.5) / count, 2.4 * i
        around = math.sqrt(1 - up * up)
        place = [0.09 * around * math.cos(turn), 0.09 * around * math.sin(turn), 0.09 * up]
        found.append({"ch_name": names[i], "loc": [*place, *9 * [0.0]], "kind": "eeg"})
    return found
