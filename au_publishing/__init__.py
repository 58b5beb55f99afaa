"""Put what was trained where others find it: the Hub, ONNX files, merged adapters, Spaces."""
