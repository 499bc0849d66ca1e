"""The format of all messages between the host and the processes behind the walls.

Two channels connect the host with a worker. The *control channel* joins the host and the zygote and carries messages
of fixed size: requests to run or kill a child, and reports. The *data channel* is a private socket between the host and
one child: the job goes in as raw arrays, frames come out. The host never unpickles what comes out and never parses it
as JSON. A frame is a magic number, a kind and a length, which the host checks before it reads on, followed by float64
numbers or by three short strings.
"""

import struct

# Data channel, host to child. After the header come the source, x_train (f8), y_train (i8) and classes (i8); x_test
# (f8) follows only after the child has answered FITTED.
JOB = struct.Struct("<q5I")  # seed, bytes of source, training rows, features, validation rows, classes

# Data channel, child to host.
MAGIC = b"ETS1"
FRAME = struct.Struct("<4sB3xI")  # magic, kind, length of what follows
CONFINED, FITTED, RESULT, ERROR, BAD_OUTPUT, NO_MEMORY = range(1, 7)  # kinds of frames
MAX_ERROR_BYTES = 4096  # of the payload of an error: type \0 line \0 message, in UTF-8

# Control channel, host to zygote, once. After it come the compiled filter, the names of the modules to load (separated
# by \0) and the path of a file.
HELLO = struct.Struct("<3IIIB")  # the three lengths, a TCP port, a user id, the walls to put up
# Control channel, host to zygote, then. The child's end of the data channel travels with a RUN.
REQUEST = struct.Struct("<B7xdq")  # kind, CPU seconds, bytes of memory above what the zygote holds
RUN, KILL = 1, 2  # kinds of requests

# Control channel, zygote to host.
REPORT = struct.Struct("<BB2xid")  # kind, flags, number, CPU seconds
TRIED, READY, ENDED = 1, 2, 3  # kinds; the number is Landlock's ABI (or minus errno), the threads, the wait status
SECCOMP, LANDLOCK, BUBBLEWRAP = 1, 2, 4  # flags of TRIED and READY, summed: the walls that were seen to hold
BY_ITSELF, BY_HOST, BY_CPU_LIMIT = 0, 1, 2  # flags of ENDED: what ended the child

# Exit statuses of a child.
EXIT_NO_MEMORY, EXIT_UNCONFINED = 71, 99
