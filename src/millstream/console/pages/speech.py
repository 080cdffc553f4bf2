"""Speech: speak, or play a file as if it were live, and read who says what while it is said; correct it, and export it.

The page itself is drawn in the browser (static/speech.js): words change ten times a second, and a partial word that
makes a round trip through the drawing of pages would come late. This module says what it may ask for and its texts.
"""

from __future__ import annotations

import asyncio
from functools import partial

import msgspec
from nicegui import ui

from millstream import errors
from millstream.console.listening import LIVE, WRITTEN, SpeechViews, routes
from millstream.console.page import Page, Visit
from millstream.console.parts import notice

SCRIPTS = ("transcript", "sound", "latency", "speech")
FORMATS = ("txt", "srt", "vtt", "json", "rttm")
WORDS = {
    "speech.title": ("Speech", "语音"),
    "speech.intro": (
        "Speak, or play a file as if it were live: words appear while they are said, grey until they are sure.",
        "对着麦克风讲话，或像现场一样播放文件：文字随语音出现，未确定的显示为灰色。",
    ),
    "speech.none": (
        "This installation hears nothing: its millstream.toml has no [speech]. Fetch the models, add the lines, and "
        "start it again.",
        "此系统未启用语音：millstream.toml 中没有 [speech]。请先获取模型，加入以下几行，然后重新启动。",
    ),
    "speech.microphone": ("Microphone", "麦克风"),
    "speech.file": ("Play a file", "播放文件"),
    "speech.stop": ("Stop", "停止"),
    "speech.profile": ("Profile", "场景"),
    "speech.language": ("Language", "语言"),
    "speech.speakers": ("Speakers", "说话人"),
    "speech.any_language": ("as it is spoken", "自动识别"),
    "speech.as_profile": ("as the profile says", "按场景设定"),
    "speech.policy.correctable": ("at once, corrected later", "立即显示，之后可更正"),
    "speech.policy.delayed": ("once it is sure", "确定后再显示"),
    "speech.policy.enrolled": ("enrolled voices only", "仅已登记的声音"),
    "speech.policy.none": ("not told apart", "不区分"),
    "speech.level": ("Loudness", "音量"),
    "speech.transcript": ("Transcript", "文字记录"),
    "speech.empty": ("Nothing was said yet.", "还没有内容。"),
    "speech.unknown": ("unknown", "未知"),
    "speech.analysing": ("analysing", "分析中"),
    "speech.overlap": ("more than one voice", "多人同时说话"),
    "speech.edited": ("edited", "已修改"),
    "speech.correct": ("Correct this text", "修改这段文字"),
    "speech.rename": ("Who said this: {who}", "这是谁说的：{who}"),
    "speech.new_text": ("What was said", "正确的文字"),
    "speech.new_speaker": ("Who said it", "说话人"),
    "speech.latency": ("Latency", "延迟"),
    "speech.latency_more": (
        "Seen from this browser: from sound to screen, its network included.",
        "以此浏览器为准：从声音到屏幕，包含网络。",
    ),
    "speech.first": ("First words after speech begins", "开口到首批文字"),
    "speech.final": ("Final text after speech ends", "说完到最终文字"),
    "speech.median": ("median {ms} ms of {count}", "{count} 次的中位数 {ms} 毫秒"),
    "speech.load": (
        "{rtf} s of computing a second of audio, {queue} ms in the queue",
        "每秒音频计算 {rtf} 秒，排队 {queue} 毫秒",
    ),
    "speech.degraded": ("busy: {what}", "繁忙：{what}"),
    "speech.export": ("Export", "导出"),
    "speech.export_form": ("Export as {form}", "导出为 {form}"),
    "speech.keys": (
        "start or stop the microphone · Enter saves a correction, Esc leaves it",
        "开始或停止麦克风 · Enter 保存修改，Esc 取消",
    ),
    "speech.opening": ("Asking for the microphone or reading the file …", "正在请求麦克风或读取文件……"),
    "speech.connecting": ("Connecting …", "正在连接……"),
    "speech.listening": ("Listening", "正在聆听"),
    "speech.finishing": ("Finishing …", "正在收尾……"),
    "speech.done": (
        "Finished. Corrections now stay in this page and its exports.",
        "已结束。之后的修改只保留在本页和导出中。",
    ),
    "speech.insecure": (
        "A browser gives its microphone only to pages at localhost or over https: open the console so, or play a file.",
        "浏览器只允许 localhost 或 https 页面使用麦克风：请以这种方式打开控制台，或播放文件。",
    ),
    "speech.refused": (
        "The browser gave no microphone: {why}. Allow it in the address bar, or play a file.",
        "浏览器未提供麦克风：{why}。请在地址栏中允许，或播放文件。",
    ),
    "speech.no_sound": ("This browser cannot read {file} as sound: {why}", "此浏览器无法读取 {file} 的声音：{why}"),
    "speech.too_large": (
        "{file} has over {most} MB: millstream transcribe takes it",
        "{file} 超过 {most} MB：请使用 millstream transcribe",
    ),
    "speech.lost": (
        "The connection to the console was lost; what was heard stays here.",
        "与控制台的连接已断开；已听到的内容保留在此。",
    ),
    "speech.behind": (
        "The network is too slow for this audio; what was heard stays here.",
        "网络速度不足以传送音频；已听到的内容保留在此。",
    ),
}


def page(views: SpeechViews) -> Page:
    """The page over these views."""

    async def build(visit: Visit) -> None:
        try:
            now = await asyncio.to_thread(views.speech)
        except errors.Error as error:
            visit.alert(str(error))
            return
        if not now.recogniser:
            notice(visit.say("speech.none"), icon="mic_off")
            with ui.element("pre").classes("card mono speech-how"):
                ui.label(f"pip install 'millstream[speech]'\n{now.fetch}\n\n{now.toml}")
            return
        ui.add_head_html("".join(f'<script src="/static/{name}.js"></script>' for name in SCRIPTS))
        ui.element("div").props('id="speech"')
        said = {
            "profiles": now.profiles, "profile": now.profile, "policies": now.policies if now.voices else [],
            "formats": FORMATS, "live": LIVE, "written": WRITTEN, "language": visit.language,
            "texts": {name.partition(".")[2]: visit.say(name) for name in WORDS},
        }  # fmt: skip
        ui.run_javascript(f"millstreamSpeech.begin({msgspec.json.encode(said).decode()})")

    return Page(
        path="/speech", name="speech", icon="mic_none", letter="s", build=build, words=WORDS,
        routes=partial(routes, views),
    )  # fmt: skip
