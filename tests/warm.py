"""Kernels that begin with torch and transformers imported: ten processor seconds a page that say nothing about the page.

The standard library's fork server imports them once, in a process of its own that has one thread and runs nothing; each kernel is a copy of it.
The server has to hold what is the same for every page, and nothing of tokenscope."""
import multiprocessing
import os
import sys
from importlib.metadata import EntryPoint

from jupyter_client.manager import AsyncKernelManager
from jupyter_client.provisioning import KernelProvisionerFactory, LocalProvisioner

SHARED = ["torch", "transformers.modeling_utils", "transformers.models.llama.modeling_llama", "transformers.models.auto.modeling_auto",
          "ipykernel.kernelapp", "ipywidgets", "ipykernel.debugger", "jupyter_client.manager",
          "jupyter_client.provisioning", "nbclient"]


def begin(connection_file: str, environment: dict[str, str], folder: str) -> None:
    "The life of a kernel, in a copy of the server."
    from ipykernel.kernelapp import IPKernelApp
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv[1:] = []
    os.setsid()  # signals reach what the page starts too
    app = IPKernelApp.instance(parent_handle=os.getppid())  # ends when the server does
    app.initialize(["-f", connection_file])
    app.start()


class Process(multiprocessing.get_context("forkserver").Process):
    "A process with the names that jupyter_client expects of one."
    stdin = stdout = stderr = None

    def poll(self) -> int | None:
        return self.exitcode

    def wait(self) -> int | None:
        self.join()
        return self.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


class WarmProvisioner(LocalProvisioner):
    "Starts a kernel as a copy of the server."
    async def launch_kernel(self, cmd: list[str], env: dict[str, str], cwd: str = ".", **kwargs):
        server = multiprocessing.get_context("forkserver")
        server.set_forkserver_preload(SHARED)
        self.process = Process(target=begin, args=(cmd[cmd.index("-f") + 1], env, cwd))
        self.process.start()
        self.pid, self.pgid, self.cwd = self.process.pid, self.process.pid, cwd
        return self.connection_info


class WarmKernels(AsyncKernelManager):
    "A manager whose kernels are copies of the server: `NotebookClient(..., kernel_manager_class=WarmKernels)`."
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        factory = KernelProvisionerFactory.instance()
        factory.default_provisioner_name = "warm"
        factory.provisioners["warm"] = EntryPoint("warm", "warm:WarmProvisioner", "jupyter_client.kernel_provisioners")
