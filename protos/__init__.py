"""What server and device say to each other: messages as dataclasses, and their protobuf form."""
