"""What the tests of the tasks share: small raw tables in the form of Kaggle's, and a check of error messages."""

KIDNEY = "id,gravity,target\n0,1.5,0\n1,1.25,1\n2,,1\n3,1.75,0\n4,1,1\n5,2,0\n"
HEALTH = "ID,City,Age,Response\n1,C3,36,0\n2,C10,75,0\n3,C5,32,1\n4,C3,36,1\n5,C5,,0\n6,C10,9,0\n"


def one_line(caught, *parts):
    """The caught error is one line and names each of the parts."""
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message
