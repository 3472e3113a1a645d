import io

from index.progress import Progress


def test_a_log_gets_a_last_line_with_what_was_done():
    stream = io.StringIO()
    with Progress("embedding", 10, already=4, stream=stream) as progress:
        progress.done = 4
        progress.advance(6)
    assert stream.getvalue().splitlines()[-1].startswith("embedding  10/10")


def test_the_rate_does_not_credit_an_earlier_run():
    progress = Progress("x", 1000, already=500, stream=io.StringIO())
    progress.done = 500
    assert "  0/s" in progress.line()
