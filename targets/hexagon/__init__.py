"""The `hexagon` family: Qualcomm's HTP, the matrix processor of Snapdragon phones and laptops.

onnxruntime's QNN execution provider (the extra `hexagon`) compiles graphs of fixed shapes ahead of time into
context binaries, each for one HTP architecture, and on x86-64 the emulator in the same package executes them.
Models compute in half precision; calibrated ones in integers of 8 or 16 bits, weights in 8.
"""
