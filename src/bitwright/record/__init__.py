"""The Record: everything that a run measured, typed section by section. The report is rebuilt from it alone."""

from bitwright.record.convert import as_data, from_data, plain_data
from bitwright.record.file import (
    RECORD_FILE,
    read_record,
    record_of,
    write_record,
)
from bitwright.record.made import (
    ALL_INT8,
    Evidence,
    LayerRow,
    LeftOut,
    ModelFacts,
    PlanRow,
    RejectedMethod,
    Size,
    Smallest,
    Starved,
    UnitEvidence,
)
from bitwright.record.measured import (
    Distribution,
    Evaluation,
    Histogram,
    Metric,
    Sensitivity,
    SensitivityRow,
    StepRow,
    Verification,
)
from bitwright.record.sections import RECORD_VERSION, Record
from bitwright.record.timed import Environment, Front, FrontRow, HeldOut, Skipped, Speed, SpeedRow

__all__ = [
    "ALL_INT8",
    "RECORD_FILE",
    "RECORD_VERSION",
    "Distribution",
    "Environment",
    "Evaluation",
    "Evidence",
    "Front",
    "FrontRow",
    "HeldOut",
    "Histogram",
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
    "Smallest",
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
