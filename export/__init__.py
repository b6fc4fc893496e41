"""torch denoiser -> verified ONNX bundle. Needs torch, onnx and onnxscript."""
