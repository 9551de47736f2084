"""The ONNX file executed on NumPy and mixport.arithmetic alone, independent of any runtime."""
