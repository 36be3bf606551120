"""Ready stores: examples of one device from arrays, tables, text, images and a cache that forgets. One file each.

Every store of a file is checked as a whole when it is made, against what the model takes, and read again in every `batches`, in
the process that trains. What is wrong is a DataFileError that names file and reason, and never shows an example.
"""
