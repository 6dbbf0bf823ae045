"""Mixed-bit kernels in TIR and the rules that choose among them."""
