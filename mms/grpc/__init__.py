"""The Open Inference Protocol V2 over gRPC. Only imported if `grpc_port` enables it."""
