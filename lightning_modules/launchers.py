"""The rank of this process in a training. Launchers such as torchrun, srun and Kubernetes set it in variables."""

from __future__ import annotations

from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning_fabric.utilities.rank_zero import rank_zero_only


class OneProcess(LightningEnvironment):
    """The environment of a training that has one process. It reads no variable.

    RANK, LOCAL_RANK, SLURM_* and LSB_* may be set all the same: Kubernetes and Slurm set them for every program.
    """

    def __init__(self) -> None:
        super().__init__()
        # Lightning reads RANK, LOCAL_RANK, SLURM_PROCID and JSM_NAMESPACE_RANK when it is imported, and a process of a
        # rank above 0 records nothing.
        self.set_global_rank(0)

    @property
    def creates_processes_externally(self) -> bool:
        """No launcher: there is this process only."""
        return False

    @property
    def main_address(self) -> str:
        """This machine."""
        return "127.0.0.1"

    def local_rank(self) -> int:
        """The first process."""
        return 0

    def node_rank(self) -> int:
        """The first machine."""
        return 0

    def teardown(self) -> None:
        """Keep WORLD_SIZE, which Lightning would delete."""


def cluster_environment(num_processes: int) -> ClusterEnvironment | None:
    """Lightning's environment, by which the processes of a training find each other.

    Args:
        num_processes: devices times nodes.

    Returns:
        None leaves it to Lightning, which reads the variables of the launcher.
    """
    if num_processes == 1:
        return OneProcess()
    if SLURMEnvironment.detect() and not TorchElasticEnvironment.detect():
        # Lightning's way to requeue a job writes a checkpoint that the next run would start from.
        return SLURMEnvironment(auto_requeue=False)
    return None


def is_first_process(num_processes: int) -> bool:
    """Whether this process is the one that writes: the only one, or the first that a launcher has started.

    Args:
        num_processes: devices times nodes.
    """
    return num_processes == 1 or bool(rank_zero_only.rank == 0)  # type: ignore[attr-defined]
