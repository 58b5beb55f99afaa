"""train_sft.py under FSDP2 on CPUs, for test_engines.py: accelerate offers FSDP2 on accelerators alone.

PyTorch shards on CPUs too; only the kind of engine that accelerate concludes from the device has to be told to it.
Everything else, the settings of recipes/accelerate/fsdp2.yaml included, goes its ordinary way.
"""

import sys

from accelerate.state import AcceleratorState, DistributedType, PartialState

from au_llava.au_training.command import main, make_parser

original = AcceleratorState.__init__


def with_fsdp(self, *args, fsdp_plugin=None, **kwargs):
    known = bool(AcceleratorState._shared_state)
    original(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    if not known and fsdp_plugin is not None:
        self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        self.fsdp_plugin = fsdp_plugin


AcceleratorState.__init__ = with_fsdp

if __name__ == "__main__":
    main(*make_parser().parse_args_and_config(sys.argv[1:], fail_with_unknown_args=True))
