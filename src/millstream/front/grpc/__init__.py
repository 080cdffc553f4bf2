"""The gRPC border: an HTTP/2 transport of our own, and the service of the Open Inference Protocol behind it."""

from millstream.front.grpc.call import Call, Receiver, Service
from millstream.front.grpc.limits import GrpcLimits
from millstream.front.grpc.server import Grpc

__all__ = ["Call", "Grpc", "GrpcLimits", "Receiver", "Service"]
