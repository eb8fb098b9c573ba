"""Servers on the loopback interface, for tests and benchmarks: real ones, a fast one, and one that does harm.

s3            a real S3 server with signatures (SeaweedFS), in a folder of its own
range_server  plain HTTP ranges of a folder's files, with a latency and a rate for each answer
fault_proxy   stands between a client and a server, and does one of many kinds of harm to chosen answers
answers       the harm that shows in an answer's status, headers or bytes
sending       the harm that shows in the way an answer is sent
wire          requests and answers as bytes on a connection
guard         programs that end when the process that started them does
"""
