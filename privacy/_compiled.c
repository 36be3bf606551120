/* The two loops over an update that numpy would make several passes of; `kernels.py` says what they do, and does the same.

   Only Python's stable interface is used, so one build serves every Python from 3.11 on. */

#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdint.h>
#include <string.h>

#define BLOCK 4096
#define MOST_VECTORS 64

#if defined(__GNUC__)
/* Vectors may begin at any address, as they do on the wire. */
typedef int16_t __attribute__((aligned(1), may_alias)) narrow_t;
typedef int32_t __attribute__((aligned(1), may_alias)) wide_t;
#else
typedef int16_t narrow_t;
typedef int32_t wide_t;
#endif

#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && !defined(__clang__)
#define FOR_EVERY_PROCESSOR __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define FOR_EVERY_PROCESSOR
#endif

/* The compiler may add the squares in any order: below 2**53 that gives the same number. */
#define COPY(name, to_t, from_t) \
    FOR_EVERY_PROCESSOR static int name(to_t *target, const from_t *source, Py_ssize_t size, double *squared) \
    { \
        int32_t lost = 0; \
        double total = 0; \
        for (Py_ssize_t at = 0; at < size; at++) { \
            int32_t value = source[at]; \
            target[at] = (to_t)value; \
            lost |= value ^ (to_t)value; \
            total += (double)value * (double)value; \
        } \
        *squared = total; \
        return lost == 0; \
    }

COPY(copy_narrow, narrow_t, narrow_t)
COPY(copy_wide, wide_t, wide_t)
COPY(shorten, narrow_t, wide_t)
COPY(widen, wide_t, narrow_t)

#define ADD(name, from_t) \
    FOR_EVERY_PROCESSOR static void name(wide_t *lane, const from_t *source, Py_ssize_t size) \
    { \
        for (Py_ssize_t at = 0; at < size; at++) \
            lane[at] = (int32_t)((uint32_t)lane[at] + (uint32_t)source[at]); \
    }

ADD(add_narrow, narrow_t)
ADD(add_wide, wide_t)

/* A contiguous vector of native int16 or int32, aligned ("i") or not ("=i"); anything else is an error, and then nothing has to
   be released. */
static int open_vector(PyObject *from, Py_buffer *view, int flags)
{
    if (PyObject_GetBuffer(from, view, flags | PyBUF_ND | PyBUF_FORMAT) != 0)
        return -1;
    const char *format = view->format ? view->format : "B";
    format += format[0] == '=';
    int narrow = strcmp(format, "h") == 0 && view->itemsize == 2;
    int wide = (strcmp(format, "i") == 0 || strcmp(format, "l") == 0) && view->itemsize == 4;
    if (view->ndim == 1 && (narrow || wide))
        return 0;
    PyErr_Format(PyExc_TypeError, "a vector is flat int16 or int32, not %d dimensions of format %s", view->ndim, format);
    PyBuffer_Release(view);
    return -1;
}

static PyObject *copy(PyObject *module, PyObject *arguments)
{
    PyObject *to, *from;
    Py_buffer target, source;
    if (!PyArg_ParseTuple(arguments, "OO", &to, &from) || open_vector(to, &target, PyBUF_WRITABLE) != 0)
        return NULL;
    if (open_vector(from, &source, PyBUF_SIMPLE) != 0) {
        PyBuffer_Release(&target);
        return NULL;
    }
    Py_ssize_t size = source.shape[0];
    double squared = 0;
    int fits = 1, fitting = target.shape[0] == size;
    if (!fitting)
        PyErr_SetString(PyExc_ValueError, "source and target differ in length");
    else if (target.itemsize == 2)
        fits = source.itemsize == 2 ? copy_narrow(target.buf, source.buf, size, &squared)
                                    : shorten(target.buf, source.buf, size, &squared);
    else
        fits = source.itemsize == 2 ? widen(target.buf, source.buf, size, &squared)
                                    : copy_wide(target.buf, source.buf, size, &squared);
    PyBuffer_Release(&source);
    PyBuffer_Release(&target);
    return fitting ? Py_BuildValue("dO", squared, fits ? Py_True : Py_False) : NULL;
}

/* Block by block, so that a block of the lane is fetched once for all vectors. */
static void add_all(const Py_buffer *lane, const Py_buffer *vectors, Py_ssize_t many)
{
    Py_ssize_t size = lane->shape[0];
    for (Py_ssize_t start = 0; start < size; start += BLOCK) {
        Py_ssize_t count = size - start < BLOCK ? size - start : BLOCK;
        wide_t *total = (wide_t *)lane->buf + start;
        for (const Py_buffer *one = vectors; one < vectors + many; one++) {
            if (one->itemsize == 2)
                add_narrow(total, (const narrow_t *)one->buf + start, count);
            else
                add_wide(total, (const wide_t *)one->buf + start, count);
        }
    }
}

static PyObject *add(PyObject *module, PyObject *arguments)
{
    PyObject *to, *from;
    Py_buffer lane, vectors[MOST_VECTORS];
    if (!PyArg_ParseTuple(arguments, "OO!", &to, &PyList_Type, &from) || open_vector(to, &lane, PyBUF_WRITABLE) != 0)
        return NULL;
    Py_ssize_t many = PyList_Size(from), open = 0;
    int sound = lane.itemsize == 4 && many <= MOST_VECTORS;
    while (sound && open < many && open_vector(PyList_GetItem(from, open), &vectors[open], PyBUF_SIMPLE) == 0) {
        sound = vectors[open].shape[0] == lane.shape[0];
        open++;
    }
    if (sound && open == many)
        add_all(&lane, vectors, many);
    else if (!PyErr_Occurred())
        PyErr_SetString(PyExc_ValueError, "a lane is int32 and as long as each vector, and at most 64 are added at once");
    while (open > 0)
        PyBuffer_Release(&vectors[--open]);
    PyBuffer_Release(&lane);
    if (PyErr_Occurred())
        return NULL;
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"copy", copy, METH_VARARGS, "copy(target, source): see fedrho.privacy.kernels."},
    {"add", add, METH_VARARGS, "add(lane, vectors): see fedrho.privacy.kernels."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_compiled", NULL, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__compiled(void)
{
    return PyModuleDef_Init(&definition);
}
