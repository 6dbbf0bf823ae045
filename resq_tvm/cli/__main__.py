"""``python -m resq_tvm.cli``: the command line without its installed script."""

from resq_tvm.cli import main

main()
