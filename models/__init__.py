"""The model zoo: Keras models over one flat float32 vector, by name; shared by server, client and simulations."""
