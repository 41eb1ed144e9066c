# Made by docs/generate.py: the names that holdfast.attacks finds in its files.
from collections.abc import Callable

from holdfast.attacks.attack import Attack as Attack
from holdfast.attacks.attack import perturb as perturb
from holdfast.attacks.attack import run as run
from holdfast.attacks.autoattack import AutoAttack as AutoAttack
from holdfast.attacks.decision.boundary import Boundary as Boundary
from holdfast.attacks.decision.cgba import CGBA as CGBA
from holdfast.attacks.decision.geoda import GeoDA as GeoDA
from holdfast.attacks.decision.hopskipjump import HopSkipJump as HopSkipJump
from holdfast.attacks.decision.rays import RayS as RayS
from holdfast.attacks.decision.signopt import SignOPT as SignOPT
from holdfast.attacks.decision.surfree import SurFree as SurFree
from holdfast.attacks.gradient.acg import ACG as ACG
from holdfast.attacks.gradient.apgd import APGD as APGD
from holdfast.attacks.gradient.bab import BaB as BaB
from holdfast.attacks.gradient.capgd import CAPGD as CAPGD
from holdfast.attacks.gradient.dula import DULA as DULA
from holdfast.attacks.gradient.pgd import PGD as PGD
from holdfast.attacks.gradient.sea import SEA as SEA
from holdfast.attacks.gradient.slide import SLIDE as SLIDE
from holdfast.attacks.minimum_norm.alma import ALMA as ALMA
from holdfast.attacks.minimum_norm.brendelbethge import BrendelBethge as BrendelBethge
from holdfast.attacks.minimum_norm.cw import CW as CW
from holdfast.attacks.minimum_norm.ddn import DDN as DDN
from holdfast.attacks.minimum_norm.deepfool import DeepFool as DeepFool
from holdfast.attacks.minimum_norm.ead import EAD as EAD
from holdfast.attacks.minimum_norm.fab import FAB as FAB
from holdfast.attacks.minimum_norm.fmn import FMN as FMN
from holdfast.attacks.minimum_norm.pdpgd import PDPGD as PDPGD
from holdfast.attacks.minimum_norm.superdeepfool import SuperDeepFool as SuperDeepFool
from holdfast.attacks.result import AttackResult as AttackResult
from holdfast.attacks.result import Outcome as Outcome
from holdfast.attacks.result import SearchResult as SearchResult
from holdfast.attacks.score.bandits import Bandits as Bandits
from holdfast.attacks.score.genetic import Genetic as Genetic
from holdfast.attacks.score.nes import NES as NES
from holdfast.attacks.score.relay import Relay as Relay
from holdfast.attacks.score.signhunter import SignHunter as SignHunter
from holdfast.attacks.score.simba import SimBA as SimBA
from holdfast.attacks.score.spsa import SPSA as SPSA
from holdfast.attacks.score.square import Square as Square
from holdfast.attacks.score.sweep import Sweep as Sweep
from holdfast.attacks.score.zoo import ZOO as ZOO
from holdfast.attacks.sparse.jsma import JSMA as JSMA
from holdfast.attacks.sparse.onepixel import OnePixel as OnePixel
from holdfast.attacks.sparse.patchrs import PatchRS as PatchRS
from holdfast.attacks.sparse.sigmazero import SigmaZero as SigmaZero
from holdfast.attacks.sparse.sparsers import SparseRS as SparseRS
from holdfast.attacks.sparse.vfga import VFGA as VFGA
from holdfast.attacks.transfer.admix import Admix as Admix
from holdfast.attacks.transfer.bsr import BSR as BSR
from holdfast.attacks.transfer.difgsm import DIFGSM as DIFGSM
from holdfast.attacks.transfer.mifgsm import MIFGSM as MIFGSM
from holdfast.attacks.transfer.sia import SIA as SIA
from holdfast.attacks.transfer.sifgsm import SIFGSM as SIFGSM
from holdfast.attacks.transfer.tifgsm import TIFGSM as TIFGSM
from holdfast.attacks.transfer.vmifgsm import VMIFGSM as VMIFGSM
from holdfast.attacks.trees.treeexact import TreeExact as TreeExact
from holdfast.attacks.trial import Trial as Trial

CATALOGUE: dict[str, Callable[..., Attack]]

def parse(text: str) -> Attack: ...
def parse_trial(text: str) -> Trial: ...
def BIM(
    steps: int = 40,
    step_size: float = 0.1,
    loss: str = "ce",
    *,
    start_at: str = "zero",
    momentum: float = 0.0,
) -> PGD:
    """BIM, which is pgd(start_at='zero')."""

def FGSM(
    *,
    steps: int = 1,
    step_size: float = 1.0,
    loss: str = "ce",
    start_at: str = "zero",
    momentum: float = 0.0,
) -> PGD:
    """FGSM, which is pgd(steps=1, step_size=1, start_at='zero')."""

def NIFGSM(
    steps: int = 10,
    step_size: float = 0.1,
    decay: float = 1.0,
    *,
    ahead: float = 1.0,
    loss: str = "ce",
) -> MIFGSM:
    """NIFGSM, which is mifgsm(ahead=1)."""
