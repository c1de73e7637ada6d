"""Consumer GPUs of every vendor through WebGPU: WGSL made for a model's shapes, run by wgpu (Vulkan, Metal, D3D12)."""
