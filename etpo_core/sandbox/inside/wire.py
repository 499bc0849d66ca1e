"""The bytes that cross the wall, both ways.

Two channels join the host to a worker. The *control* channel (host - zygote) carries fixed-size messages: run,
kill, report. The *data* channel (host - child, a private socket a child) carries the job inwards as raw arrays and
frames outwards. Nothing that comes out is ever unpickled or parsed as JSON: a frame is a magic number, a kind, a
length that the host checks before it reads on, and then float64 numbers or three short strings.
"""

import struct

# data channel, host to child: the job's header, then source, x_train (f8), y_train (i8), classes (i8);
# x_test (f8) follows only after the child has said FITTED
JOB = struct.Struct("<q5I")  # seed, source bytes, training rows, features, test rows, classes

# data channel, child to host
MAGIC = b"ETS1"
FRAME = struct.Struct("<4sB3xI")  # magic, kind, length of what follows
CONFINED, FITTED, RESULT, ERROR, BAD_OUTPUT, NO_MEMORY = range(1, 7)
MAX_ERROR_BYTES = 4096  # type \0 line \0 message, UTF-8

# control channel, host to zygote, once: then the filter, the modules to load (names between \0) and a path follow
HELLO = struct.Struct("<3IIIB")  # their lengths; a port; a user id; which layers to put up
# ... and then; a RUN carries the child's end of the data channel
ORDER = struct.Struct("<B7xdq")  # kind, CPU seconds, bytes of memory above the zygote's own
RUN, KILL = 1, 2

# control channel, zygote to host
REPORT = struct.Struct("<BB2xid")  # kind, flag, number, CPU seconds
TRIED, READY, ENDED = 1, 2, 3  # number: Landlock's ABI (or minus an error number); threads; wait status
SECCOMP, LANDLOCK, BUBBLEWRAP = 1, 2, 4  # flags of TRIED and READY, summed: the layers that were seen to hold
BY_ITSELF, BY_HOST, BY_CPU_LIMIT = 0, 1, 2  # flags of ENDED: who stopped the child

# exit statuses of a child
EXIT_NO_MEMORY, EXIT_UNCONFINED = 71, 99
