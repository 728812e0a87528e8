"""The Record: everything that a run measured, typed section by section. The report is rebuilt from it alone."""

from bitwright.record.convert import as_data, from_data, plain_data
from bitwright.record.file import (
    RECORD_FILE,
    read_record,
    record_of,
    write_record,
)
from bitwright.record.made import (
    Evidence,
    LayerRow,
    LeftOut,
    ModelFacts,
    PlanRow,
    RejectedMethod,
    Size,
    Starved,
    UnitEvidence,
)
from bitwright.record.measured import (
    Distribution,
    Elsewhere,
    Evaluation,
    Histogram,
    KindRow,
    Metric,
    Sensitivity,
    SensitivityRow,
    StepRow,
    Verification,
)
from bitwright.record.sections import RECORD_VERSION, Record
from bitwright.record.timed import Environment, Front, FrontRow, HeldOut, Skipped, Speed, SpeedRow

__all__ = [
    "RECORD_FILE",
    "RECORD_VERSION",
    "Distribution",
    "Elsewhere",
    "Environment",
    "Evaluation",
    "Evidence",
    "Front",
    "FrontRow",
    "HeldOut",
    "Histogram",
    "KindRow",
    "LayerRow",
    "LeftOut",
    "Metric",
    "ModelFacts",
    "PlanRow",
    "Record",
    "RejectedMethod",
    "Sensitivity",
    "SensitivityRow",
    "Size",
    "Skipped",
    "Speed",
    "SpeedRow",
    "Starved",
    "StepRow",
    "UnitEvidence",
    "Verification",
    "as_data",
    "from_data",
    "plain_data",
    "read_record",
    "record_of",
    "write_record",
]
