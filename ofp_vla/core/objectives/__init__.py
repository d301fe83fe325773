"""Training objectives over interval fields."""

from .flow_matching import FlowMatching, FlowMatchingConfig
from .objective import ROLES, Objective, require_roles
from .ofp import OFP
from .ofp_config import OFPConfig

__all__ = ["OFP", "ROLES", "FlowMatching", "FlowMatchingConfig", "OFPConfig", "Objective", "require_roles"]
