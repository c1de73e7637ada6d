"""The `openvino` family."""
