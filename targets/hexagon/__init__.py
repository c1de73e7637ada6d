"""The `hexagon` family: Qualcomm's HTP, the matrix processor of Snapdragon phones and laptops.

onnxruntime's QNN execution provider (the extra `hexagon`) compiles graphs of fixed shapes ahead of time into
context binaries, each for one HTP architecture, and on x86-64 the emulator in the same package executes them.
Models compute in half precision. Calibrated ones (QDQ) are refused: the emulator computed a quantised classifier
other than onnxruntime does (0.61 for 0.89), and the compiler refused MiniLM's quantised normalisations.
"""
