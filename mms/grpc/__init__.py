"""The Open Inference Protocol V2 over gRPC. Only imported where `grpc_port` asks for it."""
